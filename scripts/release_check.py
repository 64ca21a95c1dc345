"""Check what would be released: build the sdist and the wheel, install the wheel into an empty environment, and use it there.

    make release-check

dist/ then holds both files. Run it in an environment with the extra `release`. A release also needs a section `[VERSION] - DATE` in
CHANGELOG.md; without one, this script prints a note.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What a checkout has and a wheel must not have, and the data without which the wheel does not work.
_FORBIDDEN = re.compile(r"^(tests|experiments|docs|configs|scripts)/|__pycache__|\.pyc$")
_NEEDED = (
    "plamo2_jax/py.typed",
    "plamo2_jax/configs/quickstart.py",
    "plamo2_jax/configs/synth_demo.yaml",
    "plamo2_jax/data/bundled/ja.jsonl.xz",
    "plamo2_jax/project/files/Makefile",
    "plamo2_jax/report/page.html",
    "plamo2_jax/tokenizer/templates/chat.jinja",
    "plamo2_kernels/py.typed",
)
_TINY = """
import jax
import plamo2_jax as plamo2
from plamo2_jax.checkpoint import save_model
from plamo2_jax.model import Plamo2, init_params

tokenizer = plamo2.Tokenizer.load("tokenizer")
config = plamo2.preset("tiny", hidden_size=32, num_hidden_layers=2, vocab_size=tokenizer.vocab_size)
params = jax.jit(lambda key: init_params(Plamo2(config), key))(jax.random.key(0))
save_model("model", config, params, tokenizer)
"""
# Seconds for one command in the empty environment.
_TIMEOUT = 900


def main() -> None:
    """Run the checks; exit with status 1 at the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="folder for the sdist and the wheel")
    options = parser.parse_args()
    version = read_version()
    sdist, wheel = build(options.output, version)
    run([sys.executable, "-m", "twine", "check", "--strict", sdist, wheel])
    check_contents(sdist, wheel, version)
    with tempfile.TemporaryDirectory(prefix="release-check-") as folder:
        use(wheel, version, Path(folder))
    if not re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.M):
        print(f"note: CHANGELOG.md has no section [{version}] - DATE yet: a release needs one")
    print(f"{sdist}\n{wheel}: ready")


def read_version() -> str:
    """Return the version, which is in one place."""
    text = (ROOT / "src" / "plamo2_jax" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)[1]


def build(output: Path, version: str) -> tuple[Path, Path]:
    """Build the sdist, and the wheel from the sdist, in a copy of the files that git knows. Return both paths."""
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="release-build-") as folder:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, Path(folder) / name)
        run([sys.executable, "-m", "build", "--outdir", output.absolute(), folder])
    return output / f"plamo2_jax-{version}.tar.gz", output / f"plamo2_jax-{version}-py3-none-any.whl"


def check_contents(sdist: Path, wheel: Path, version: str) -> None:
    """Check the names of the files in both archives."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    with tarfile.open(sdist) as archive:
        sources = [name.partition("/")[2] for name in archive.getnames()]
    missing = [name for name in _NEEDED if name not in names]
    unwanted = [name for name in names if _FORBIDDEN.search(name)]
    outside = [
        name
        for name in names
        if name.split("/")[0] not in ("plamo2_jax", "plamo2_kernels", f"plamo2_jax-{version}.dist-info")
    ]
    if missing or unwanted or outside:
        sys.exit(f"{wheel}: missing {missing}, not wanted {unwanted[:5]}, outside the packages {outside[:5]}")
    packaged = {name for name in names if name.startswith("plamo2_jax/")}
    # configs/ is installed as plamo2_jax/configs.
    sources += [f"src/plamo2_jax/{name}" for name in sources if name.startswith("configs/")]
    if lost := [name for name in packaged if f"src/{name}" not in sources]:
        sys.exit(f"{sdist}: lacks {lost[:5]}")
    print(f"{wheel.name}: {len(names)} files, {wheel.stat().st_size:,} bytes")


def use(wheel: Path, version: str, folder: Path) -> None:
    """Install the wheel into an empty environment, away from the checkout, and train or generate there."""
    begun = time.monotonic()
    venv.create(folder / "venv", with_pip=True)
    bin_folder = folder / "venv" / "bin"
    run(
        [bin_folder / "pip", "--disable-pip-version-check", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel]
    )
    print(f"installed in {time.monotonic() - begun:.0f} s")
    work = folder / "work"
    work.mkdir()
    plamo2 = bin_folder / "plamo2"
    if f"plamo2-jax {version} " not in (said := run([plamo2, "--version"], work)):
        sys.exit(f"plamo2 --version prints {said!r}: it must name {version}")
    begun = time.monotonic()
    if re.search(r"^  quickstart ", run([plamo2, "--help"], work), re.MULTILINE):
        # Its chat ends at the end of the input.
        print(run([plamo2, "quickstart"], work))
    else:
        run(
            [
                plamo2,
                "tokenizer",
                "train",
                "--input",
                "bundled:en:heldout",
                "--vocab-size",
                "512",
                "--output",
                "tokenizer",
            ],
            work,
        )
        run([bin_folder / "python", "-c", _TINY], work)
        generated = run([plamo2, "generate", "model", "--prompt", "The", "--max-new-tokens", "8", "--json"], work)
        if '"token_ids": [' not in generated:
            sys.exit(f"plamo2 generate prints {generated!r}: it must print token ids")
    print(f"used in {time.monotonic() - begun:.0f} s")


def run(command: list, folder: Path = ROOT) -> str:
    """Run a command without input, and return its output; exit with status 1 if it fails."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_TIMEOUT,
        )
    except subprocess.TimeoutExpired as error:
        sys.exit(f"{' '.join(words)} took more than {_TIMEOUT} s; its output so far: {str(error.output)[-2000:]}")
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed with status {done.returncode}:\n{done.stdout[-4000:]}")
    return done.stdout


if __name__ == "__main__":
    main()
