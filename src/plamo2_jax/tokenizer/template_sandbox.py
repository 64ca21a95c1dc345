"""Chat templates compiled and rendered in jinja2's sandbox, and the process that does so for templates of others.

This file imports jinja2 and nothing of this project: run as a program it is a small interpreter that renders one template and may be
killed at any time (see `template_process`).
"""

from __future__ import annotations

import contextlib
import json
import marshal
import re
import signal
import struct
import sys
from typing import Any, BinaryIO

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

# Noncharacters, which Unicode keeps free for such uses: no text has them. MARK follows the first character of a control string that is
# text; BEGIN and END enclose what the assistant says.
MARK, BEGIN, END = "\ufdd0", "\ufdd1", "\ufdd2"
MARKS = re.compile(f"[{MARK}{BEGIN}{END}]")

CPU_SECONDS, CPU_SECONDS_PER_MIB = 1.0, 0.1
"""CPU time for compiling and for one rendering, and what a rendering may use besides for each MiB that it is given. A rendering of the
template `chat` needs 0.02 s per MiB. CPU time, because a busy machine must not decide whether a template is refused."""
MEMORY_BYTES = 1 << 30
"""Address space of the process that renders."""
OUTPUT_CHARACTERS, OUTPUT_FACTOR = 1 << 20, 16
"""A rendering may have so many characters, and so many more for every byte of what it is given."""
MESSAGE_CHARACTERS = 300

LENGTH = struct.Struct("<Q")
RENDERED, FAILED, OVERRUN = b"+", b"-", b"!"


class TemplateProblem(Exception):
    """What is wrong with a template; the message continues a sentence that begins with the template's name."""


class TemplateOverrun(TemplateProblem):
    """A rendering that needs more time or memory than the limits allow."""


class SandboxedTemplate:
    """A compiled template.

    Args:
        source: Jinja.

    Raises:
        TemplateProblem: `source` cannot be compiled.
    """

    def __init__(self, source: str):
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _refuse
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateProblem(f", line {error.lineno}: {shorten(error.message)}") from None
        # Jinja computes constant expressions while it compiles, and Python's own compiler has limits too.
        except Exception as error:
            raise TemplateProblem(f" cannot be compiled: {_reason(error)}") from None

    def render(self, variables: dict[str, Any], max_characters: int = sys.maxsize) -> str:
        """The template's text.

        Args:
            variables: of the template.
            max_characters: longest text that is returned.

        Raises:
            TemplateProblem: the template fails, refuses, or writes too much.
        """
        pieces, length = [], 0
        try:
            for piece in self._template.generate(variables):
                length += len(piece)
                if length > max_characters:
                    raise TemplateProblem(
                        f" writes more than {max_characters:,} characters for this conversation, which is the limit"
                    )
                pieces.append(piece)
            return "".join(pieces)
        except TemplateProblem:
            raise
        except MemoryError as error:
            raise TemplateOverrun(f" fails on this conversation: {_reason(error)}") from None
        # A template is a program: whatever it stumbles over is wrong with it, or with what it was given.
        except Exception as error:
            raise TemplateProblem(f" fails on this conversation: {_reason(error)}") from None


class _Generation(jinja2.ext.Extension):
    """`{% generation %} ... {% endgeneration %}`: puts marks around what is between."""

    tags = frozenset({"generation"})

    def parse(self, parser: Any) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_wrap"), [], [], body).set_lineno(line)

    def _wrap(self, caller: Any) -> str:
        return f"{BEGIN}{caller()}{END}"


def shorten(message: object) -> str:
    """A message as part of one sentence: one line of bounded length, without marks."""
    text = " ".join(MARKS.sub("", str(message)[: 4 * MESSAGE_CHARACTERS]).split())
    return text if len(text) <= MESSAGE_CHARACTERS else f"{text[: MESSAGE_CHARACTERS - 3]}..."


def _tojson(
    value: Any,
    indent: int | None = None,
    *,
    ensure_ascii: bool = False,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own escapes characters for HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: Any) -> None:
    raise TemplateProblem(f": {shorten(message)}")


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it calls itself or nests too deeply"
    if isinstance(error, MemoryError):
        return f"it needs more than {MEMORY_BYTES >> 20} MiB of memory"
    return shorten(error) or type(error).__name__


def main() -> None:
    """Compile the template of the first message on stdin, and render it with the variables of every further one.

    A message is its length (8 bytes, little-endian) and a marshalled object. An answer is its length, then `RENDERED` and the text,
    `FAILED` and a `TemplateProblem`, or `OVERRUN` and a `TemplateOverrun`, in UTF-8.
    """
    _limit_resources()
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    template = None
    while (request := read_message(requests)) is not None:
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds(len(request)))
        try:
            if template is None:
                template, text = SandboxedTemplate(marshal.loads(request)), ""
            else:
                limit = OUTPUT_CHARACTERS + OUTPUT_FACTOR * len(request)
                text = template.render(marshal.loads(request), limit)
            answer = RENDERED + text.encode("utf-8", "surrogatepass")
        except TemplateProblem as problem:
            mark = OVERRUN if isinstance(problem, TemplateOverrun) else FAILED
            answer = mark + str(problem).encode("utf-8", "replace")
        except MemoryError as error:
            answer = OVERRUN + f" fails on this conversation: {_reason(error)}".encode()
        signal.setitimer(signal.ITIMER_PROF, 0)
        write_message(answers, answer)


def cpu_seconds(size: int) -> float:
    """CPU time for a request of `size` bytes."""
    return CPU_SECONDS + CPU_SECONDS_PER_MIB * size / (1 << 20)


def read_message(file: BinaryIO) -> bytes | None:
    """The next message; None where there is none."""
    head = file.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    length = LENGTH.unpack(head)[0]
    body = file.read(length)
    return body if len(body) == length else None


def write_message(file: BinaryIO, body: bytes) -> None:
    """Write one message."""
    file.write(LENGTH.pack(len(body)))
    file.write(body)
    file.flush()


def _limit_resources() -> None:
    import resource

    # A terminal's Ctrl-C is for the process that asks; this one ends when its stdin does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    for limit, value in ((resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        # macOS does not limit address space; the time limit holds there.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(limit, (value, value))


if __name__ == "__main__":
    main()
