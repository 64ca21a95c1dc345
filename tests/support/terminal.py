"""A `plamo2` command in a terminal of its own (a pseudo terminal), with keys to press and a screen to read."""

import codecs
import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

_START = (
    "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    " from plamo2_jax.cli.main import main; sys.exit(main(sys.argv[1:]))"
)
CTRL_C, CTRL_D = "\x03", "\x04"


class Terminal:
    """A running command.

    Args:
        arguments: of `plamo2`.
        folder: its working folder.
        kind: of the terminal, as in $TERM.
    """

    def __init__(self, *arguments, folder, kind="dumb"):
        self._screen, slave = pty.openpty()
        environment = os.environ | {"TERM": kind, "PYTHONUNBUFFERED": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, *map(str, arguments)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=folder,
            env=environment,
        )
        os.close(slave)
        self._decoder, self._seen, self.text = codecs.getincrementaldecoder("utf-8")(), 0, ""

    def type(self, text):
        """Press keys."""
        os.write(self._screen, text.encode())

    def line(self, text):
        """Type a line."""
        self.type(f"{text}\r")

    def wait(self, pattern, seconds=120):
        """Wait until a pattern appears behind what was waited for before; return what came up to its end."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.text[self._seen :])):
            left = end - time.monotonic()
            assert left > 0, f"{pattern!r} did not appear:\n{self.text}"
            assert self._read(left) or re.search(pattern, self.text[self._seen :]), (
                f"ended without {pattern!r}:\n{self.text}"
            )
        before = self.text[self._seen : self._seen + found.end()]
        self._seen += found.end()
        return before

    def _read(self, seconds):
        """Read what the command printed; return whether it runs on."""
        if select.select([self._screen], [], [], min(seconds, 0.5))[0]:
            try:
                part = os.read(self._screen, 1 << 16)
            except OSError:  # The other end of the terminal is closed.
                return False
            # Colors, which the tests do not read.
            self.text += re.sub(r"\x1b\[[0-9;?]*[a-z]", "", self._decoder.decode(part)).replace("\r\n", "\n")
        return True

    def end(self, seconds=120):
        """Wait for the end of the command and return its exit status."""
        end = time.monotonic() + seconds
        while self._process.poll() is None and time.monotonic() < end:
            self._read(0.1)
        return self._process.wait(1)

    def close(self):
        """End the command."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
        with contextlib.suppress(OSError):
            os.close(self._screen)
