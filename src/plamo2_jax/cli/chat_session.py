"""A chat in the terminal: reading messages and commands, and printing answers while they are generated."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from plamo2_jax.errors import PlamoError
from plamo2_jax.models.chat_model import Usage
from plamo2_jax.models.streaming import AnswerSettings, StreamingChat

COMMANDS = {
    "/exit": "end the chat (or Ctrl-D)",
    "/reset": "start a new conversation with the same system message",
    "/system TEXT": "set the system message, or remove it if TEXT is missing",
    "/save FILE": "write the conversation to a new file, as a JSON line that plamo2 sft reads",
    "/help": "list the commands",
}


class ChatSession:
    """A conversation between the terminal and a model.

    Args:
        model: the chat model.
        settings: how.
        system: the system message.
    """

    def __init__(self, model: StreamingChat, settings: AnswerSettings, system: str | None = None):
        self._model, self._settings, self._system = model, settings, system
        self._messages: list[dict[str, str]] = []
        self._saved: set[Path] = set()
        self._interactive = sys.stdin.isatty()
        # How often Ctrl-C was pressed during the present answer, and whether the answer is still being generated.
        self._interrupts, self._generating = 0, False
        # Whether control characters in answers could reach a terminal.
        self._shown = _printable if sys.stdout.isatty() else str

    def run(self) -> int:
        """Read and answer messages until the end of the input.

        Raises:
            PlamoError: the input is not a terminal, and a message has no answer.
        """
        if not self._interactive:
            self._talk()
            return 0
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 (gives input() editing and the lines before)
        before = signal.signal(signal.SIGINT, self._interrupt)
        try:
            _say(f"{self._model.description}. /help lists the commands.")
            self._talk()
        finally:
            signal.signal(signal.SIGINT, before)
        return 0

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """Take a Ctrl-C. The second one during an answer raises KeyboardInterrupt.

        The first one is only counted, because an exception in the middle of a step would leave the engine without its state.
        """
        del number, frame
        self._interrupts += 1
        if self._interrupts > 1 and self._generating:
            raise KeyboardInterrupt

    def _talk(self) -> None:
        while (line := self._read()) is not None:
            try:
                if line.startswith("/"):
                    if not self._command(*line.split(maxsplit=1)):
                        break
                elif line.strip():
                    self._answer(line)
            except (PlamoError, OSError) as error:
                if not self._interactive:
                    raise
                _say(f"error: {error}")

    def _read(self) -> str | None:
        """Read a message, which may have several lines; None at the end of the input."""
        lines: list[str] = []
        while True:
            prompt = ("... " if lines else "> ") if self._interactive else ""
            try:
                line = self._input(prompt)
            except EOFError:
                if self._interactive:
                    print()
                return "\n".join(lines) if lines else None
            except KeyboardInterrupt:
                if not self._interactive:
                    raise
                print()
                _say("/exit or Ctrl-D ends the chat.")
                lines = []
                continue
            if not line.endswith("\\"):
                return "\n".join([*lines, line])
            lines.append(line[:-1])

    def _input(self, prompt: str) -> str:
        """Read a line. Only here, Ctrl-C raises KeyboardInterrupt at once."""
        if not self._interactive:
            return input(prompt)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return input(prompt)
        finally:
            signal.signal(signal.SIGINT, self._interrupt)

    def _command(self, name: str, argument: str = "") -> bool:
        """Run a command; return whether the chat goes on."""
        if name == "/exit":
            return False
        if name == "/reset":
            self._messages.clear()
            _say("The conversation is empty.")
        elif name == "/system":
            self._system = argument or None
            _say("The system message is set." if argument else "There is no system message.")
        elif name == "/save":
            self._save(argument)
        elif name == "/help":
            width = max(map(len, COMMANDS))
            _say("\n".join(f"{command:<{width}}  {text}" for command, text in COMMANDS.items()))
        else:
            raise PlamoError(f"unknown command {name[:40]!r}: /help lists the commands")
        return True

    def _conversation(self) -> list[dict[str, str]]:
        system = [] if self._system is None else [{"role": "system", "content": self._system}]
        return [*system, *self._messages]

    def _save(self, name: str) -> None:
        """Write the conversation to a new file, or again to one that this chat has written."""
        from plamo2_jax.storage import write_whole

        if not name:
            raise PlamoError("the file name is missing: use /save FILE")
        if not self._messages:
            raise PlamoError("there is no conversation to save: send a message first")
        path = Path(name).expanduser()
        if path.exists() and path not in self._saved:
            raise PlamoError(f"{path} already exists: give the name of a new file")
        write_whole(path, (json.dumps({"messages": self._conversation()}, ensure_ascii=False) + "\n").encode())
        self._saved.add(path)
        _say(f"saved {path}")

    def _answer(self, question: str) -> None:
        """Print the answer to a message, and remember both. A message without an answer is forgotten."""
        self._messages.append({"role": "user", "content": question})
        begun, first, text, last = time.perf_counter(), None, "", None
        pieces = self._model.answer(self._conversation(), self._settings)
        self._interrupts, self._generating = 0, True
        try:
            with contextlib.closing(pieces):
                for piece in pieces:
                    if piece.text:
                        first = first or time.perf_counter()
                        text += piece.text
                        print(self._shown(piece.text), end="", flush=True)
                    last = piece
                    if self._interrupts or piece.finish_reason is not None:
                        break
                self._generating = False
        finally:
            self._generating = False
            if text:
                print()
                self._messages.append({"role": "assistant", "content": text})
            else:
                del self._messages[-1]
        if last is None or last.finish_reason is None:
            _say("(stopped)")
            return
        if not text:
            print()
            _say("The answer is empty.")
        if self._interactive:
            end = {"stop": "", "length": ", ended by --max-new-tokens"}.get(
                last.finish_reason, ", ended early by the server"
            )
            _say(_figures(last.usage, begun, first, time.perf_counter()) + end)


def _figures(usage: Usage | None, begun: float, first: float | None, end: float) -> str:
    """Return the token counts and the speed of an answer, as far as they are known."""
    parts = []
    tokens = None if usage is None else usage.completion_tokens
    if tokens is not None:
        parts.append(f"{tokens} tokens")
        if first is not None and tokens > 1 and end > first:
            parts.append(f"{(tokens - 1) / (end - first):.1f} tokens/s")
    if first is not None:
        parts.append(f"first token after {first - begun:.2f} s")
    if usage is not None and usage.prompt_tokens is not None:
        cached = f" ({usage.cached_tokens} from the cache)" if usage.cached_tokens else ""
        parts.append(f"prompt {usage.prompt_tokens} tokens{cached}")
    return ", ".join(parts)


def _say(text: str) -> None:
    """Print something that is not part of an answer, in faint letters on a terminal."""
    shown = _printable(text)
    print(f"\x1b[2m{shown}\x1b[0m" if sys.stderr.isatty() else shown, file=sys.stderr, flush=True)


def _printable(text: str) -> str:
    """Return a text whose control characters are spelled out, so that an answer cannot control the terminal."""
    return "".join(c if c in "\n\t" or not _is_control(c) else repr(c)[1:-1] for c in text)


def _is_control(character: str) -> bool:
    """Return whether a terminal may read a character as a command: control characters of ASCII and Latin-1."""
    return character < " " or "\x7f" <= character <= "\x9f"
