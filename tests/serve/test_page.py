"""The chat page in headless Chromium: a script types, reads, stops and reloads as a person does."""

import functools
import json
import re
import time
from pathlib import Path

import pytest

import plamo2_jax
from support import chromium

pytest.importorskip("uvicorn", reason="the extra serve is not installed")
if chromium.find() is None:
    pytest.skip("no Chromium is installed", allow_module_level=True)

from starlette.responses import JSONResponse

from support.scripted_server import scripted_server

PAGE = Path(plamo2_jax.__file__).parent / "serve" / "page"
IDLE = "!document.body.classList.contains('answering')"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = chromium.Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def server():
    with scripted_server(PAGE) as server:
        yield server


@pytest.fixture
def page(browser, server):
    return opened(browser, server)


def opened(browser, server, **settings):
    page = browser.open(f"{server.url}/", **settings)
    page.wait("document.activeElement.id === 'question' && !document.querySelector('#model').disabled")
    return page


def ask(page, text):
    """Send a question and wait for the end of its answer."""
    before = page.value("document.querySelectorAll('li').length")
    page.type(text)
    page.press("Enter")
    page.wait(f"document.querySelectorAll('li').length > {before} && {IDLE}")


def texts(page):
    """Return what the conversation shows."""
    return page.value("[...document.querySelectorAll('li .text')].map((each) => each.innerText)")


def problem(page):
    return page.wait("document.querySelector('#problem').textContent")


def test_a_question_is_answered_while_the_page_shows_its_text(page, server):
    server.answer = [{"seed": 9, "choices": []}, "吾輩は", "猫で", 0.5, "ある。\n", "名前は🐈", "まだ無い。"]
    page.type("吾輩は何？")
    page.press("Enter")
    assert page.wait("document.querySelector('li.assistant .text')?.innerText === '吾輩は猫で'")
    assert page.value("!document.querySelector('#stop').hidden && document.querySelector('#send').hidden")
    page.wait(IDLE)
    assert texts(page) == ["吾輩は何？", "吾輩は猫である。\n名前は🐈まだ無い。"]
    facts = page.value("document.querySelector('li.assistant .facts').textContent")
    found = re.fullmatch(
        r"5 tokens · ([\d.]+) tokens/s · first token after ([\d.]+) s · prompt 7 tokens \(4 from the cache\) · seed 9",
        facts,
    )
    # Four tokens after the first, which the server holds back for half a second. A busy machine changes this time.
    assert 0 < float(found[1]) < 4 / 0.2
    body = server.bodies[-1]
    assert body["messages"] == [{"role": "user", "content": "吾輩は何？"}]
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert (body["model"], body["temperature"], body["top_p"], body["max_tokens"]) == ("tiny", 0.8, 0.95, 1024)
    assert "seed" not in body


def test_enter_sends_but_not_with_shift_nor_while_an_input_method_composes(page, server):
    page.type("一行目")
    page.press("Enter", chromium.SHIFT)
    page.call("Input.imeSetComposition", text="にほん", selectionStart=3, selectionEnd=3)
    assert page.value("document.querySelector('#question').value") == "一行目\nにほん"
    shared = {"key": "Process", "code": "Enter", "windowsVirtualKeyCode": 229}
    page.call("Input.dispatchKeyEvent", type="rawKeyDown", **shared)
    # Some browsers report the real key, and the composition beside it.
    page.value(
        "document.querySelector('#question').dispatchEvent(new KeyboardEvent('keydown',"
        " {key: 'Enter', isComposing: true, bubbles: true, cancelable: true}))"
    )
    page.type("日本")
    assert server.bodies == []
    assert page.value("document.querySelector('#question').value") == "一行目\n日本"
    page.press("Enter")
    page.wait(f"document.querySelectorAll('li').length === 2 && {IDLE}")
    assert server.bodies[0]["messages"][0]["content"] == "一行目\n日本"


@pytest.mark.parametrize("how", ["button", "Escape"])
def test_stop_ends_the_request_and_keeps_the_text(page, server, how):
    server.answer = ["One ", "two ", 30, "three"]
    page.type("Count.")
    page.press("Enter")
    page.wait("document.querySelector('li.assistant .text')?.innerText.trim() === 'One two'")
    if how == "button":
        page.click("#stop")
    else:
        page.press("Escape")
    page.wait(IDLE)
    end = time.monotonic() + 60
    while not server.dropped and time.monotonic() < end:
        time.sleep(0.02)
    assert server.dropped == 1
    assert "stopped" in page.value("document.querySelector('li.assistant .facts').textContent")
    assert page.value("document.querySelector('#problem').hidden")
    server.answer = ["Four."]
    page.value("document.querySelector('#question').focus()")
    ask(page, "Go on.")
    assert [each["content"] for each in server.bodies[-1]["messages"]] == ["Count.", "One two ", "Go on."]


def test_a_reload_keeps_conversation_settings_model_and_language(page, server):
    page.click("#language")
    page.click("#settings")
    page.value("document.querySelector('#system').focus()")
    page.type("短く答える。")
    page.value(
        "for (const [id, value] of [['temperature', 0], ['top-p', 0.5], ['max-tokens', 12], ['seed', 7]]) {"
        " const field = document.getElementById(id); field.value = value;"
        " field.dispatchEvent(new Event('input', {bubbles: true})) }"
    )
    page.press("Escape")
    page.value("document.querySelector('#model').value = 'other'")
    page.value("document.querySelector('#model').dispatchEvent(new Event('change'))")
    page.value("document.querySelector('#question').focus()")
    ask(page, "一つ目")
    page.reload()
    page.wait("!document.querySelector('#model').disabled")
    assert texts(page) == ["一つ目", "Hello."]
    assert page.value("document.documentElement.lang") == "ja"
    ask(page, "二つ目")
    body = server.bodies[-1]
    assert [each["content"] for each in body["messages"]] == ["短く答える。", "一つ目", "Hello.", "二つ目"]
    assert body["messages"][0]["role"] == "system"
    found = [body[name] for name in ("model", "temperature", "top_p", "max_tokens", "seed")]
    assert found == ["other", 0, 0.5, 12, 7]
    page.click("#new")
    assert texts(page) == []
    page.reload()
    assert texts(page) == []


def test_a_reload_in_the_middle_keeps_the_text_so_far(page, server):
    server.answer = ["Only this", 30]
    page.type("Go.")
    page.press("Enter")
    page.wait("document.querySelector('li.assistant .text')?.innerText === 'Only this'")
    page.reload()
    assert texts(page) == ["Go.", "Only this"]
    assert page.value("document.querySelector('li.assistant .facts').textContent").endswith("stopped")


def test_an_answer_again_replaces_the_last_one(page, server):
    ask(page, "Greet me.")
    server.answer = ["Good morning."]
    page.click("li.assistant .again")
    page.wait(f"document.querySelector('li.assistant .text').innerText === 'Good morning.' && {IDLE}")
    assert texts(page) == ["Greet me.", "Good morning."]
    assert [each["content"] for each in server.bodies[-1]["messages"]] == ["Greet me."]


def test_markup_in_an_answer_is_text_and_fences_become_code(page, server):
    attack = '<img src=x onerror="window.ran = 1"><script>window.ran = 1</script>'
    server.answer = [f"{attack}\n``", "`html\n", attack, "\n\n  x = 1\n```", "\nEnd & <b>done</b>"]
    ask(page, attack)
    assert page.value("window.ran") is None
    assert page.value("document.querySelectorAll('li img, li script, li b').length") == 0
    assert page.value("document.querySelector('li.assistant pre').textContent") == f"{attack}\n\n  x = 1"
    assert page.value("document.querySelector('li.assistant .name').textContent") == "html"
    shown = page.value("[...document.querySelectorAll('li.assistant .text > p')].map((each) => each.textContent)")
    assert shown == [attack, "End & <b>done</b>"]
    assert texts(page)[0] == attack


@pytest.mark.parametrize("cut", [1, 2, 3, 7, 1000])
def test_blocks_do_not_depend_on_how_a_text_arrives(page, cut):
    text = "a\n\n```py\nb\n```\nc\n````\n```\nd\n```\n````\n``` not `a` fence\n~~~\n```\nopen\n"
    script = """(async () => {
      const { blocksOf, show } = await import('/page/blocks.js');
      const made = () => document.getElementById('code-block').content.cloneNode(true).firstElementChild;
      const [grown, whole] = [document.createElement('div'), document.createElement('div')];
      for (let end = CUT; end < TEXT.length + CUT; end += CUT) show(grown, TEXT.slice(0, end), made);
      show(whole, TEXT, made);
      return [grown.isEqualNode(whole), blocksOf(TEXT).map((block) => [block.code, block.name, block.text])];
    })()"""
    same, blocks = page.value(script.replace("CUT", str(cut)).replace("TEXT", json.dumps(text)))
    assert same
    assert blocks == [
        [False, "", "a"],
        [True, "py", "b"],
        [False, "", "c"],
        [True, "", "```\nd\n```"],
        [False, "", "``` not `a` fence\n~~~"],
        [True, "", "open\n"],
    ]


REFUSED = {"error": {"message": "max_tokens is 1,024:\n at most 100\tis allowed", "type": "invalid_request_error"}}


@pytest.mark.parametrize(
    ("refusal", "sentence"),
    [
        ((REFUSED, 400), "The server refused the request (HTTP 400): max_tokens is 1,024: at most 100 is allowed"),
        (({}, 500), "The server refused the request (HTTP 500)."),
        ((REFUSED, 429, {"Retry-After": "3"}), "The server is busy. Try again in 3 seconds."),
        ((REFUSED, 503, {"Retry-After": "1"}), "The server is busy. Try again in 1 second."),
    ],
)
def test_a_refusal_is_one_sentence_and_the_question_can_be_asked_again(page, server, refusal, sentence):
    server.refusals = [JSONResponse(*refusal)]
    page.type("Hi")
    page.press("Enter")
    assert problem(page) == sentence
    assert texts(page) == ["Hi"]
    page.click("li.user .again")
    page.wait(f"document.querySelectorAll('li').length === 2 && {IDLE}")
    assert page.value("document.querySelector('#problem').hidden")
    assert texts(page) == ["Hi", "Hello."]


def test_a_stream_that_breaks_or_reports_an_error_says_so_and_keeps_its_text(page, server):
    # The pause lets the text arrive: a browser drops what it has not read of a broken connection.
    server.answer = ["Half", 0.2, None]
    ask(page, "Hi")
    assert problem(page) == "The connection ended before the answer was complete. Try again."
    assert texts(page) == ["Hi", "Half"]
    server.answer = ["Half", {"error": {"message": "the logits are not finite"}}]
    page.click("li.assistant .again")
    failed = "The server could not finish the answer: the logits are not finite"
    page.wait(f"document.querySelector('#problem').textContent === {json.dumps(failed)}")
    server.answer, server.finish_reason = ["Long"], "length"
    page.click("li.assistant .again")
    page.wait("document.querySelector('li.assistant .facts').textContent.endsWith('maximum number of tokens')")
    server.finish_reason = "abort"
    page.click("li.assistant .again")
    page.wait("document.querySelector('li.assistant .facts').textContent.endsWith('ended early by the server')")


def test_a_server_that_is_gone_is_named(browser):
    with scripted_server(PAGE) as server:
        page = opened(browser, server)
    page.type("Hi")
    page.press("Enter")
    assert problem(page).startswith("The server cannot be reached.")


def test_a_server_with_keys_gets_the_key_that_the_page_asks_for(browser, server):
    server.key = "sesame"
    page = browser.open(f"{server.url}/")
    assert problem(page) == "The server needs an API key. Enter one to continue."
    page.wait("document.activeElement.id === 'key'")
    page.type("wrong")
    page.press("Enter")
    page.wait("document.activeElement.id === 'key' && !document.querySelector('#key-form').hidden")
    page.value("document.querySelector('#key').value = ''")
    page.type("sesame")
    page.press("Enter")
    page.wait("document.activeElement.id === 'question' && document.querySelector('#problem').hidden")
    ask(page, "Hi")
    assert texts(page) == ["Hi", "Hello."]
    assert "sesame" not in page.value("JSON.stringify(localStorage)")


def test_copy_buttons_copy_the_source(browser, page, server):
    browser.call(
        "Browser.grantPermissions",
        permissions=["clipboardReadWrite", "clipboardSanitizedWrite"],
        browserContextId=page.context,
    )
    server.answer = ["See:\n```sh\nls\n```\n"]
    ask(page, "Hi")
    page.click("li.assistant .copy")
    assert page.wait("navigator.clipboard.readText()") == server.answer[0]
    assert page.value("document.querySelector('li.assistant .copy').textContent") == "Copied"
    page.click(".bar button")
    page.wait("navigator.clipboard.readText().then((text) => text === 'ls')")


def test_the_language_is_the_browsers_and_can_be_changed(browser, server):
    page = opened(browser, server, language="ja")
    assert page.value("document.documentElement.lang") == "ja"
    assert page.value("document.querySelector('#welcome').textContent") == "質問を入力してください。"
    ask(page, "こんにちは")
    assert "入力7トークン" in page.value("document.querySelector('li.assistant .facts').textContent")
    page.click("#language")
    assert page.value("document.querySelector('li.assistant .again').textContent") == "Regenerate"
    assert page.value("document.querySelector('#new').getAttribute('aria-label')") == "New chat"
    missing = page.value(
        """import('/page/texts.js').then(({ languages }) => {
          const marked = [...document.querySelectorAll('[data-text], [data-label], [data-placeholder]')]
            .concat([...document.querySelectorAll('template')]
              .flatMap((each) => [...each.content.querySelectorAll('[data-text]')]))
            .flatMap((each) => [each.dataset.text, each.dataset.label, each.dataset.placeholder]).filter(Boolean);
          const names = new Set([...marked, ...Object.keys(languages.en), ...Object.keys(languages.ja)]);
          return [...names].filter((name) => !(name in languages.en && name in languages.ja));
        })"""
    )
    assert missing == []


@pytest.mark.parametrize("language", ["en", "ja"])
def test_nothing_is_wider_than_a_phone_and_buttons_are_large_enough(browser, server, language):
    page = opened(browser, server, language=language, width=360, height=640)
    server.models = ["a-model-with-a-very-long-name-" * 3]
    server.answer = ["```\n" + "x" * 300 + "\n```\n" + "y" * 300]
    ask(page, "z" * 300)
    assert page.value("document.documentElement.scrollWidth") == 360
    assert page.value("document.querySelector('main').scrollWidth <= document.querySelector('main').clientWidth")
    page.click("#settings")
    assert page.value("document.querySelector('#panel').scrollWidth <= document.querySelector('#panel').clientWidth")
    small = """[...document.querySelectorAll('header button, header select, #composer button, dialog button')]
      .map((each) => [each.id, each.getBoundingClientRect()])
      .filter(([, box]) => box.width && (box.height < 40 || box.width < 40 || box.right > 360)).map(([id]) => id)"""
    assert page.value(small) == []


def test_controls_have_names_and_follow_each_other(page):
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    controls = [
        (node["role"]["value"], node.get("name", {}).get("value"))
        for node in nodes
        if node["role"]["value"] in ("button", "textbox", "combobox", "link") and not node.get("ignored")
    ]
    assert len(controls) == 7
    assert all(name for _, name in controls), controls
    assert any(node["role"]["value"] == "log" for node in nodes)
    order = []
    page.value("document.activeElement.blur()")
    page.value("document.querySelector('.skip').focus()")
    for _ in range(6):
        page.press("Tab")
        order.append(page.value("document.activeElement.id"))
    assert order == ["model", "language", "settings", "new", "question", "send"]


def test_screen_readers_hear_whole_sentences(page, server):
    server.answer = ["One. T", "wo", " is 2.", 0.3, " Three"]
    page.type("Count.")
    page.press("Enter")
    heard = "[...document.querySelectorAll('#announcer p')].map((each) => each.textContent)"
    page.wait(f"{heard}.length === 2")
    assert page.value(heard) == ["Waiting for the answer", "One."]
    page.wait(IDLE)
    assert page.value(heard) == ["Waiting for the answer", "One.", "Two is 2.", "Three", "The answer is complete."]


LUMINANCE = """(color) => {
  const parts = color.match(/[\\d.]+/g).slice(0, 3).map((each) => each / 255);
  const [r, g, b] = parts.map((each) => (each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_from_its_ground(browser, server, theme):
    """WCAG 2.2, level AA: a contrast of at least 4.5."""
    page = opened(browser, server, theme=theme)
    server.answer = ["Text\n```sh\nls\n```", None]
    ask(page, "Hi")
    problem(page)
    page.click("#settings")
    low = page.value(
        f"""(() => {{
          const luminance = {LUMINANCE};
          const ground = (element) => {{
            for (let each = element; each; each = each.parentElement) {{
              const color = getComputedStyle(each).backgroundColor;
              if (!/, 0\\)$/.test(color)) return color;
            }}
          }};
          const shown = [...document.querySelectorAll('body *')].filter((each) => each.getClientRects().length
            && [...each.childNodes].some((child) => child.nodeType === 3 && child.data.trim()) && !each.closest('select'));
          return [shown.length, shown.map((each) => {{
            const [a, b] = [getComputedStyle(each).color, ground(each)].map(luminance).sort((x, y) => y - x);
            return [each.textContent, (a + 0.05) / (b + 0.05)];
          }}).filter(([, contrast]) => contrast < 4.5)];
        }})()"""
    )
    assert low[0] > 20
    assert low[1] == []


def test_the_page_loads_nothing_from_elsewhere_and_obeys_its_policy(page, server):
    server.answer = ["```\ncode\n```\nDone."]
    ask(page, "Hi")
    page.click("#settings")
    addresses = [event["request"]["url"] for event in page.events("Network.requestWillBeSent")]
    assert len(addresses) > 7
    assert all(address.startswith(f"{server.url}/") for address in addresses)
    assert page.events("Log.entryAdded") == []
    assert page.events("Runtime.exceptionThrown") == []


@functools.cache
def sources():
    return {path.name: path.read_text(encoding="utf-8") for path in PAGE.iterdir()}


def test_no_source_writes_markup_or_names_another_server():
    assert {"index.html", "page.css", "page.js"} <= sources().keys()
    for name, source in sources().items():
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "style=", "onclick="):
            assert word not in source, (name, word)
        assert re.findall(r"(?:https?:)?//[a-z][\w.-]*\.[a-z]+", source.replace("http://www.w3.org/2000/svg", "")) == []
