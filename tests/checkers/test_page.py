"""docs/checkers.md is what scripts/checker_table.py writes."""

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_lists_the_registry():
    written = runpy.run_path(str(ROOT / "scripts" / "checker_table.py"))["page"]()
    assert (ROOT / "docs" / "checkers.md").read_text(encoding="utf-8") == written, "run scripts/checker_table.py"
