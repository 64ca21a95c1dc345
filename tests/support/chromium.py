"""Chromium without a window, driven over the pipe of its DevTools protocol (https://chromedevtools.github.io/devtools-protocol/)."""

import base64
import contextlib
import fcntl
import itertools
import json
import os
import shutil
import subprocess
import threading
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# Characters that have a key; all others are inserted as an input method does.
_KEYS = {"Enter": (13, "\r"), "Escape": (27, None), "Tab": (9, None)}
SHIFT = 8


def find():
    """Return the program, or None where none is installed."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """A browser process; close it at the end.

    Args:
        folder: an empty folder for its profile.
    """

    def __init__(self, folder, arguments=()):
        read_end, self._to = os.pipe()
        self._from, write_end = os.pipe()
        # The browser reads from descriptor 3 and writes to descriptor 4: the ends that it inherits must be others.
        inherited = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (read_end, write_end)]
        command = [find(), "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", *arguments]
        command += [f"--user-data-dir={folder}", "--no-first-run", "--disable-background-networking", "about:blank"]
        shell = ["bash", "-c", 'exec "${@:3}" 3<&$1 4>&$2', "bash", *map(str, inherited), *command]
        self._process = subprocess.Popen(
            shell, pass_fds=inherited, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for end in (read_end, write_end, *inherited):
            os.close(end)
        self._numbers, self._arrived = itertools.count(1), threading.Condition()
        self._answers, self.events = {}, []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        rest = b""
        with contextlib.suppress(OSError):
            while part := os.read(self._from, 1 << 16):
                *messages, rest = (rest + part).split(b"\0")
                for message in map(json.loads, messages):
                    with self._arrived:
                        if "id" in message:
                            self._answers[message["id"]] = message
                        else:
                            self.events.append(message)
                        self._arrived.notify_all()

    def call(self, method, session=None, **params):
        """Call a method of the protocol and return its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self._to, json.dumps(message).encode() + b"\0")
        with self._arrived:
            assert self._arrived.wait_for(lambda: number in self._answers, timeout=120), f"{method} has no answer"
            answer = self._answers.pop(number)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def open(self, url, **settings):
        """Open a page in a profile of its own; arguments as in `Page`."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        return Page(self, session, context, url, **settings)

    def close(self):
        """End the browser."""
        with contextlib.suppress(AssertionError, OSError):
            self.call("Browser.close")
        self._process.wait(20)
        os.close(self._to)


class Page:
    """A page of a browser.

    Args:
        language: what `navigator.language` says.
        width: of the window, in CSS pixels.
        theme: light or dark.
    """

    def __init__(self, browser, session, context, url, *, language="en", width=1000, height=760, theme="light"):
        self._browser, self._session, self.context = browser, session, context
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        agent = browser.call("Browser.getVersion")["userAgent"]
        self.call("Emulation.setUserAgentOverride", userAgent=agent, acceptLanguage=language)
        self.resize(width, height, theme)
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def call(self, method, **params):
        """Call a method of the protocol."""
        return self._browser.call(method, self._session, **params)

    def events(self, method):
        """Return the parameters of all events of a kind."""
        found = [event for event in list(self._browser.events) if event.get("sessionId") == self._session]
        return [event["params"] for event in found if event["method"] == method]

    def resize(self, width, height, theme):
        """Change the window."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])

    def value(self, expression):
        """Return the value of a JavaScript expression; a promise is awaited."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, expression, seconds=120):
        """Wait until a JavaScript expression is true; return its value."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := self.value(expression):
                return found
            time.sleep(0.02)
        raise AssertionError(
            f"{expression} did not become true in {seconds} s: {self.value('document.body.innerText')}"
        )

    def type(self, text):
        """Insert a text where the focus is."""
        self.call("Input.insertText", text=text)

    def press(self, key, modifiers=0):
        """Press and release a key."""
        code, text = _KEYS[key]
        shared = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        self.call("Input.dispatchKeyEvent", type="keyDown", **shared, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **shared)

    def click(self, selector):
        """Click on an element, at its middle."""
        box = self.value(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'nearest'}});"
            " const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2] })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def reload(self):
        """Load the page again."""
        self.value("window.old = true")
        self.call("Page.reload")
        self.wait("!window.old && document.readyState === 'complete'")

    def screenshot(self, path):
        """Write what is seen as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))
