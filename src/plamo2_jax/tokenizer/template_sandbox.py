"""Compiling and rendering chat templates in jinja2's sandbox, and the program that does so for untrusted templates.

This file imports jinja2 and nothing else of this project. As a program it renders one template, and `template_process` may kill it at any
time.
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

# Unicode reserves noncharacters for internal use, so no text contains them. MARK follows the first character of a control string inside a
# message; BEGIN and END enclose the assistant's text.
MARK, BEGIN, END = "\ufdd0", "\ufdd1", "\ufdd2"
MARKS = re.compile(f"[{MARK}{BEGIN}{END}]")

CPU_SECONDS, CPU_SECONDS_PER_MIB = 1.0, 0.1
"""Limits on CPU time in seconds: for compiling and for one rendering, and additionally per MiB of input. The template `chat` takes 0.02 s
per MiB. CPU time is limited, not wall-clock time, so that the load of the machine has no influence."""
MEMORY_BYTES = 1 << 30
"""Limit on the address space of the rendering process, in bytes."""
OUTPUT_CHARACTERS, OUTPUT_FACTOR = 1 << 20, 16
"""Limits on the characters of a rendering: a constant, and additionally per byte of input."""
MESSAGE_CHARACTERS = 300

LENGTH = struct.Struct("<Q")
RENDERED, FAILED, OVERRUN = b"+", b"-", b"!"


class TemplateProblem(Exception):
    """A problem with a template; the message continues a sentence that begins with the template's name."""


class TemplateOverrun(TemplateProblem):
    """A rendering needs more time or memory than allowed."""


class SandboxedTemplate:
    """A compiled template.

    Args:
        source: Jinja source.

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
        # Jinja evaluates constant expressions at compile time, and Python's compiler has limits too.
        except Exception as error:
            raise TemplateProblem(f" cannot be compiled: {_reason(error)}") from None

    def render(self, variables: dict[str, Any], max_characters: int = sys.maxsize) -> str:
        """Return the rendered text.

        Args:
            variables: Variables of the template.
            max_characters: Largest allowed number of characters.

        Raises:
            TemplateProblem: The template fails, refuses the conversation, or writes too much.
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
        # A template is a program. Any exception is a fault of the template or of its input.
        except Exception as error:
            raise TemplateProblem(f" fails on this conversation: {_reason(error)}") from None


class _Generation(jinja2.ext.Extension):
    """Jinja block `{% generation %} ... {% endgeneration %}`, which puts marks around its content."""

    tags = frozenset({"generation"})

    def parse(self, parser: Any) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_wrap"), [], [], body).set_lineno(line)

    def _wrap(self, caller: Any) -> str:
        return f"{BEGIN}{caller()}{END}"


def shorten(message: object) -> str:
    """Return a message as one line of bounded length without marks, to use in a sentence."""
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
    # Jinja's own filter escapes characters for HTML.
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
    """Return the CPU time limit in seconds for a request of `size` bytes."""
    return CPU_SECONDS + CPU_SECONDS_PER_MIB * size / (1 << 20)


def read_message(file: BinaryIO) -> bytes | None:
    """Read the next message; None at the end."""
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

    # Ctrl-C in a terminal is meant for the parent process. This process ends when its stdin is closed.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    for limit, value in ((resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        # macOS does not limit address space. The time limit still applies.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(limit, (value, value))


if __name__ == "__main__":
    main()
