"""The documentation site builds without a warning: every link, anchor and page of the navigation exists."""

import re
import shutil
import subprocess
import sys

import pytest

from support.documents import ROOT


def build(folder, *options):
    """Write the pages and build the site in a copy of what it is made from; return the folder of the site."""
    pytest.importorskip("zensical", reason="zensical is not installed (the docs extra has it)")
    folders = ("docs", "notebooks", "src", "kernels", "experiments", "scripts")
    for name in (*folders, *(path.name for path in ROOT.glob("*.md"))):
        (folder / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "mkdocs.yml", folder)
    for command in (
        [ROOT / "scripts" / "docs_pages.py", "--root", folder, *options],
        ["-m", "zensical", "build", "--strict", "--config-file", "mkdocs.yml"],
    ):
        done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, re.sub(r"\x1b\[[\d;]*m", "", done.stdout + done.stderr)[-4000:]
    return folder / "build" / "docs"


def test_the_site_builds_with_strict_links(tmp_path):
    site = build(tmp_path, "--without-api")
    page = (site / "tutorials" / "sft_and_dpo.html").read_text(encoding="utf-8")
    assert 'href="../experiments/post_training/index.html"' in page
    errors = (site / "error_index.html").read_text(encoding="utf-8")
    assert "is not a run folder: it has no" in errors
    outside = re.findall(r'(?:src|href)="(https?://[^"]+\.(?:js|css|woff2?))"', page)
    assert outside == [], "the site loads files from another host"


@pytest.mark.docs
def test_the_site_builds_with_the_api_reference(tmp_path):
    site = build(tmp_path)
    page = (site / "api" / "plamo2_kernels.ssd.html").read_text(encoding="utf-8")
    assert "plamo2_kernels.ssd.api.ssd" in page
    assert "b t h p" in page
    page = (site / "api" / "plamo2_jax.engine.html").read_text(encoding="utf-8")
    assert "plamo2_jax.engine.generator.Generator" in page
