"""The chat page, `plamo2 chat` and `plamo2 bench-serve` against the real server of a tiny model."""

import io
import json
import time

import pytest

from plamo2_jax.cli.main import main
from support import chromium
from support.http_server import running


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    assert condition()


@pytest.mark.skipif(chromium.find() is None, reason="no Chromium is installed")
def test_the_page_shows_the_text_of_the_model_and_stop_frees_its_slot(server, client, tmp_path):
    browser = chromium.Browser(tmp_path)
    try:
        page = browser.open(f"{server.url}/")
        page.wait("!document.querySelector('#model').disabled")
        page.value(
            "for (const [id, value] of [['temperature', 0], ['max-tokens', 24], ['seed', 5]]) {"
            " const field = document.getElementById(id); field.value = value;"
            " field.dispatchEvent(new Event('input', {bubbles: true})) }"
        )
        page.type("吾輩は猫である。")
        page.press("Enter")
        page.wait("document.querySelectorAll('li').length === 2 && !document.body.classList.contains('answering')")
        messages = [{"role": "user", "content": "吾輩は猫である。"}]
        expected = client.chat.completions.create(
            model="tiny", messages=messages, max_tokens=24, temperature=0, top_p=0.95, seed=5
        )
        stored = json.loads(page.value("localStorage.getItem('plamo2.messages')"))
        assert stored[1]["content"] == expected.choices[0].message.content
        assert stored[1]["facts"]["completion"] == expected.usage.completion_tokens
        assert stored[1]["facts"]["prompt"] == expected.usage.prompt_tokens
        # A long answer is stopped, and the server forgets it.
        page.value(
            "document.getElementById('max-tokens').value = 200;"
            "document.getElementById('max-tokens').dispatchEvent(new Event('input', {bubbles: true}))"
        )
        for _ in range(3):
            page.click("#new")
            page.type("ab")
            page.press("Enter")
            page.wait("document.body.classList.contains('answering')")
            page.press("Escape")
            page.wait("!document.body.classList.contains('answering')")
        wait_for(lambda: not server.admission.works)
        # Nothing that the page loads or does is against the server's policy.
        assert page.events("Log.entryAdded") == []
        assert page.events("Runtime.exceptionThrown") == []
        page.click("#settings")
        page.click("dialog .strong")
        assert page.value("document.querySelector('#panel').open") is False
    finally:
        browser.close()


def test_the_page_of_a_server_with_keys_asks_for_one(generator, tmp_path):
    if chromium.find() is None:
        pytest.skip("no Chromium is installed")
    with running(generator, keys=(b"sesame",)) as server:
        browser = chromium.Browser(tmp_path)
        try:
            page = browser.open(f"{server.url}/")
            page.wait("document.activeElement.id === 'key'")
            page.type("sesame")
            page.press("Enter")
            page.wait("!document.querySelector('#model').disabled && document.querySelector('#problem').hidden")
        finally:
            browser.close()


def test_the_terminal_shows_the_text_of_the_model(server, client, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("吾輩は猫である。\n"))
    assert main(["chat", server.url, "--temperature", "0", "--max-new-tokens", "24", "--system", "ab"]) == 0
    messages = [{"role": "system", "content": "ab"}, {"role": "user", "content": "吾輩は猫である。"}]
    expected = client.chat.completions.create(model="tiny", messages=messages, max_tokens=24, temperature=0)
    assert capsys.readouterr().out == f"{expected.choices[0].message.content}\n"


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_a_load_is_answered_and_counted(server, tmp_path, endpoint):
    folder = tmp_path / "out"
    options = ["--rate", "20", "--requests", "12", "--prompt-tokens", "uniform:20:60", "--output-tokens", "8"]
    options += ["--endpoint", endpoint, "--ignore-eos", "--shared-prefix", "64"]
    assert main(["bench-serve", server.url, "--output", str(folder), *options]) == 0
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    summary = found["summary"]
    assert (summary["completed"], summary["errors"]) == (12, {})
    assert summary["output_tokens"] == 12 * 8
    assert summary["tokens_counted_by"] == "usage"
    assert found["settings"]["prompt_unit"] == "tokens"
    lengths = [row["prompt_tokens"] for row in found["requests"]]
    if endpoint == "completions":
        assert 84 <= min(lengths) <= max(lengths) <= 124
        # The second request of the warm-up has made the cache keep the prefix.
        assert summary["cached_tokens"] >= 12 * 64
    else:
        assert 84 <= min(lengths) <= max(lengths) <= 124 + 20
