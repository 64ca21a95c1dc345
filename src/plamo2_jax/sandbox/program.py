"""The program's process: runs the program, then serves requests of the tests, one at a time.

Nothing in this process is trusted. The program can replace this code, but that gives it no advantage: the tests accept plain values only.
"""

from __future__ import annotations

import asyncio
import builtins
import io
import operator
import os
import socket
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

from plamo2_jax.sandbox.channel import receive, send
from plamo2_jax.sandbox.values import MUTABLE, decode, encode

_BUILTINS = "abs bool complex float format hash int isinstance issubclass iter len next repr reversed round str"
_OPERATORS: Mapping[str, Callable[..., Any]] = {
    **{name: getattr(operator, name) for name in operator.__all__},
    **{name: getattr(builtins, name) for name in _BUILTINS.split()},
    "await": lambda value: asyncio.run(value),
    "enter": lambda value: type(value).__enter__(value),
    "exit": lambda value: type(value).__exit__(value, None, None, None),
}
_LONGEST_PRINTED = 1 << 20
OPTIONAL = ("call", "contains", "delitem", "enter", "exit", "getitem", "iter", "len", "next", "setitem")
"""Special methods that a proxy has only if the object has them: `callable(x)` and `isinstance(x, Iterator)` look for them."""


def serve(source: str, channel: socket.socket) -> None:
    """Run a program and serve requests until the tests end. Does not return."""
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace") for _ in range(2)
    )
    try:
        exec(compile(source, "program", "exec"), main.__dict__)
        send(channel, {"ready": True})
        _Server(main.__dict__, channel).run()
    finally:
        # Skip tracebacks and exit handlers.
        os._exit(1)


class _Server:
    """Serves requests on the objects of a program."""

    def __init__(self, scope: dict[str, Any], channel: socket.socket):
        self._scope, self._channel = scope, channel
        self._objects: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._callbacks: dict[int, tuple[int, Callable[..., Any]]] = {}

    def run(self) -> None:
        while True:
            self._answer(receive(self._channel))

    def _answer(self, request: Mapping[str, Any]) -> None:
        try:
            reply = self._do(request, request["whole"])
        except Exception as error:
            reply = self._error(error)
        reply["printed"] = [_take_printed(sys.stdout), _take_printed(sys.stderr)]
        try:
            send(self._channel, reply)
        except ValueError as error:
            send(self._channel, self._error(error))

    def _do(self, request: Mapping[str, Any], whole: bool) -> dict[str, Any]:
        do, target = request["do"], request["target"]
        if do == "name":
            return {"value": self._encode(self._scope[target], whole)} if target in self._scope else {"absent": True}
        given = [decode(one, self._resolve) for one in request["arguments"]]
        named = {name: decode(one, self._resolve) for name, one in request["keywords"].items()}
        if do == "attribute":
            return {"value": self._encode(getattr(self._objects[target], *given), whole)}
        if do == "plain":
            return {"value": self._encode(self._objects[target], False)}
        if do == "assign":
            return {"value": setattr(self._objects[target], *given)}
        function = _OPERATORS[target] if do == "operator" else self._objects[target]
        result = function(*given, **named)
        if type(result) is type(NotImplemented) and do == "operator":
            raise TypeError(f"{target} is not implemented")
        reply = {"value": self._encode(result, whole)}
        if result is None and do == "call":
            before = [*enumerate(request["arguments"]), *request["keywords"].items()]
            after = {**dict(enumerate(given)), **named}
            states = [(key, old, self._encode(after[key], whole)) for key, old in before if type(after[key]) in MUTABLE]
            reply["changed"] = [[key, new] for key, old, new in states if new != old]
        return reply

    def _error(self, error: Exception) -> dict[str, Any]:
        names = [[kind.__module__, kind.__qualname__] for kind in type(error).__mro__]
        return {
            "error": names,
            "arguments": self._plain(error.args),
            "attributes": self._plain(vars(error)),
            "text": _text(error),
        }

    def _plain(self, values: Any) -> Any:
        """Encode the parts of an exception that are plain values."""
        if isinstance(values, dict):
            found = ((name, self._plain((value,))) for name, value in values.items())
            return {name: one[0] for name, one in found if one}
        try:
            return [encode(value, _refuse) for value in values]
        except Exception:
            return []

    def _encode(self, value: Any, whole: bool) -> Any:
        return encode(value, self._refer, whole)

    def _refer(self, value: Any) -> dict[str, Any]:
        """Return the reference for a value that is not plain."""
        if isinstance(value, types.ModuleType):
            return {"module": value.__name__}
        if isinstance(value, type) and issubclass(value, Exception):
            return {"exception": [[kind.__module__, kind.__qualname__] for kind in value.__mro__]}
        if id(value) in self._callbacks:
            return {"own": self._callbacks[id(value)][0]}
        number = self._numbers.get(id(value))
        if number is None:
            number = self._numbers[id(value)] = len(self._objects)
            self._objects.append(value)  # Keeps the object alive: ids are reused.
        if type(value) is types.CoroutineType:
            return {"coroutine": number}
        kind = type(value)
        special = set().union(*(vars(base) for base in kind.__mro__))
        found = [name for name in OPTIONAL if f"__{name}__" in special]
        if isinstance(value, type) and hasattr(value, "__class_getitem__"):
            found.append("getitem")
        return {"remote": [number, kind.__name__, *found]}

    def _resolve(self, name: str, content: Any) -> Any:
        return self._objects[content] if name == "own" else self._callback(*content)

    def _callback(self, number: int, name: str, doc: str | None) -> Callable[..., Any]:
        """Return a function that calls a function of the tests."""

        def callback(*arguments: Any, **keywords: Any) -> Any:
            given = [self._encode(one, False) for one in arguments]
            named = {name: self._encode(one, False) for name, one in keywords.items()}
            send(self._channel, {"callback": number, "arguments": given, "keywords": named})
            while "do" in (reply := receive(self._channel)):
                self._answer(reply)
            if "error" in reply:
                kind = getattr(builtins, reply["error"], RuntimeError)
                raise kind(*[decode(one, self._resolve) for one in reply["arguments"]])
            return decode(reply["value"], self._resolve)

        callback.__name__ = callback.__qualname__ = name
        callback.__doc__ = doc
        self._callbacks[id(callback)] = number, callback
        return callback


def _take_printed(stream: Any) -> str:
    """Return the text printed to a stream since the last call; tests may capture it."""
    try:
        stream.flush()
        buffer = stream.buffer
        text = buffer.getvalue().decode(errors="replace")
        buffer.seek(0)
        buffer.truncate()
    except Exception:
        return ""  # The program replaced the stream.
    return text[:_LONGEST_PRINTED]


def _text(error: Exception) -> str:
    try:
        return str(str(error))
    except Exception:
        return ""


def _refuse(value: Any) -> Any:
    raise TypeError(f"{type(value).__name__} has no plain value")
