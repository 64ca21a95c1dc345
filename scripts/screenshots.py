"""Take the pictures of README.md: a report and the chat page.

    make demo
    python scripts/screenshots.py runs/demo

It writes docs/images/report.png and docs/images/chat.png, each of at most 300 KB. It needs Chromium, a Japanese font (Debian: `apt-get
install chromium fonts-ipaexfont-gothic`), and the extra `serve`. The answers come from the demo's fine-tuned model, with greedy decoding.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
sys.path.insert(0, str(ROOT / "tests"))

from support.chromium import Browser  # noqa: E402

LARGEST = 300_000
_PORT = 8123
_QUESTIONS = ("「パッケージのインストール」について日本語で教えてください。", "What does “Installing packages” mean?")
_IDLE = "!document.body.classList.contains('answering')"


def save(page: Any, name: str) -> None:
    """Write what a page shows as a PNG with a palette; raise ValueError if it is too large."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.png"
        page.screenshot(raw)
        picture = Image.open(raw).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    data = io.BytesIO()
    picture.save(data, "PNG", optimize=True)
    if len(data.getvalue()) > LARGEST:
        raise ValueError(f"{name} has {len(data.getvalue()):,} bytes: at most {LARGEST:,} are allowed")
    IMAGES.mkdir(exist_ok=True)
    (IMAGES / name).write_bytes(data.getvalue())
    print(IMAGES / name, f"{len(data.getvalue()):,} bytes")


def take_report(browser: Browser, run: Path) -> None:
    """Take the picture of a run's report."""
    page = browser.open((run / "report.html").resolve().as_uri(), width=1140, height=1100)
    time.sleep(1)
    save(page, "report.png")


def take_chat(browser: Browser, model: Path) -> None:
    """Serve a model, ask it on the chat page, and take the picture."""
    command = [
        sys.executable,
        "-m",
        "plamo2_jax.cli.main",
        "serve",
        str(model),
        "--port",
        str(_PORT),
        "--max-length",
        "1024",
    ]
    server = subprocess.Popen(command)
    try:
        url = f"http://127.0.0.1:{_PORT}"
        while not _ready(f"{url}/health"):
            if server.poll() is not None:
                raise RuntimeError("the server has ended")
            time.sleep(0.5)
        page = browser.open(f"{url}/", width=1000, height=700)
        page.wait("document.activeElement.id === 'question' && !document.querySelector('#model').disabled")
        for selector, value in (("#temperature", "0"), ("#max-tokens", "96")):
            page.value(
                f"(() => {{ const e = document.querySelector('{selector}'); e.value = '{value}';"
                " for (const kind of ['input', 'change']) e.dispatchEvent(new Event(kind, {bubbles: true})); })()"
            )
        for question in _QUESTIONS:
            before = page.value("document.querySelectorAll('li').length")
            page.value("document.querySelector('#question').focus()")
            page.type(question)
            page.press("Enter")
            page.wait(f"document.querySelectorAll('li').length > {before} && {_IDLE}", 120)
        time.sleep(1)
        save(page, "chat.png")
    finally:
        server.terminate()
        server.wait(60)


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def main() -> None:
    """Take both pictures."""
    run = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(profile)
        try:
            take_report(browser, run)
            take_chat(browser, run / "tuned")
        finally:
            browser.close()


if __name__ == "__main__":
    main()
