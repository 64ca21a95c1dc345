"""The tests' process: runs the tests against a program in another process and decides the verdict.

Global names that the tests do not define are looked up in the program, except builtins. Results of the program are plain values or
`Remote` proxies of functions and objects. A Remote cannot be compared with a plain value, and operators never send a plain value to it:
otherwise an object that "equals everything" would pass.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import importlib
import io
import operator
import socket
import sys
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from plamo2_jax.sandbox.channel import Gone, receive, send
from plamo2_jax.sandbox.program import OPTIONAL
from plamo2_jax.sandbox.values import MUTABLE, decode, encode


def passes(tests: str, names: Collection[str], channel: socket.socket) -> bool:
    """Return whether the tests run to their end without an exception.

    Args:
        tests: Python source.
        names: builtin names that are looked up in the program.
        channel: connection to the program's process.
    """
    client = _Client(channel)
    scope = _Scope(client, names)
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    main.__dict__.update(scope)
    try:
        code = compile(tests, "tests", "exec")
        if "unittest" in tests:
            _replace_unittest_main(scope)
        exec(code, scope)
        # The tests used builtins only, but the program defines one of these names: its function was not tested.
        untested = not client.asked and any(client.defines(name) for name in _names(code) if hasattr(builtins, name))
    except BaseException:
        return False
    return not (untested or client.failed)


def _replace_unittest_main(scope: Mapping[str, Any]) -> None:
    """Let `unittest.main()` run the tests' own cases and return. The original looks in another module and exits."""
    import unittest

    def main(*_: Any, **__: Any) -> None:
        cases = [one for one in scope.values() if isinstance(one, type) and issubclass(one, unittest.TestCase)]
        suite = unittest.TestSuite(unittest.defaultTestLoader.loadTestsFromTestCase(case) for case in cases)
        result = unittest.TextTestRunner(io.StringIO()).run(suite)
        if not (result.testsRun and result.wasSuccessful()):
            raise AssertionError("unittest.main() found a failure, or no test")

    unittest.main = main  # type: ignore[assignment, misc]


def _names(code: types.CodeType) -> set[str]:
    """Return all names in a code object and the functions in it."""
    inner = (one for one in code.co_consts if isinstance(one, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))


class _Scope(dict[str, Any]):
    """Global scope of the tests."""

    def __init__(self, client: _Client, names: Collection[str]):
        super().__init__(__name__="__main__", __builtins__=builtins)
        self._client, self._names = client, names

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name) and name not in self._names:
            raise KeyError(name)
        return self._client.find(name)


class _Client:
    """Sends requests to the program."""

    def __init__(self, channel: socket.socket):
        self.failed = False
        """Whether the program ended, sent an invalid reply, or a callback's assertion failed. No `except` in the tests undoes it."""
        self.asked = False
        """Whether any name was found in the program."""
        self._channel = channel
        self._functions: list[Callable[..., Any]] = []
        self._exceptions: dict[tuple[str, str], type[Exception]] = {}
        self._remotes: dict[tuple[Any, ...], Remote] = {}

    def find(self, name: str) -> Any:
        """Look up a global name of the program.

        Raises:
            KeyError: the program does not define it.
        """
        # Class names start with a capital letter. Only classes give access to objects with methods.
        whole = name[:1].isupper()
        reply = self._ask({"do": "name", "target": name, "whole": whole})
        if "value" not in reply:
            raise KeyError(name)
        self.asked = True
        content = reply["value"]
        if isinstance(content, dict) and "module" in content:
            if content["module"] != name or name not in sys.stdlib_module_names:
                raise KeyError(name)
            return importlib.import_module(name)
        with self._strict():
            return self._decode(content, whole, named=whole)

    def defines(self, name: str) -> bool:
        """Return whether the program defines a name."""
        return "value" in self._ask({"do": "name", "target": name, "whole": False})

    def request(
        self, do: str, target: Any, arguments: tuple[Any, ...], keywords: Mapping[str, Any], whole: bool, **flags: bool
    ) -> Any:
        """Send a request; return its result (if it is a Remote, with these flags) or raise its exception."""
        given = [encode(one, self._refer) for one in arguments]
        named = {name: encode(one, self._refer) for name, one in keywords.items()}
        reply = self._ask({"do": do, "target": target, "arguments": given, "keywords": named, "whole": whole})
        with self._strict():
            for key, content in reply.get("changed", ()) if reply.get("value", 0) is None else ():
                _replace(keywords[key] if isinstance(key, str) else arguments[key], self._decode(content, whole))
        return self._result(reply, whole, **flags)

    def _result(self, reply: Mapping[str, Any], whole: bool, **flags: bool) -> Any:
        with self._strict():
            if "value" in reply:
                return self._decode(reply["value"], whole, **flags)
            error = self._exception(reply)
        raise error from None

    def next(self, number: int, whole: bool) -> Any:
        """Return the next item of an iterator of the program."""
        reply = self._ask(
            {"do": "operator", "target": "next", "arguments": [{"own": number}], "keywords": {}, "whole": whole}
        )
        if reply.get("error", [None])[0] == ["builtins", "StopIteration"]:
            raise StopIteration
        return self._result(reply, whole)

    def _ask(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        if self.failed:
            raise Gone
        try:
            send(self._channel, request)
            while "callback" in (reply := receive(self._channel)):
                send(self._channel, self._call_back(reply))
            printed, warned = reply["printed"]
            if not (
                type(printed) is type(warned) is str and any(name in reply for name in ("value", "absent", "error"))
            ):
                raise TypeError
        except (Gone, TypeError, KeyError, ValueError):
            self.failed = True
            raise Gone from None
        sys.stdout.write(printed)
        sys.stderr.write(warned)
        return reply

    def _call_back(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Call a function of the tests for the program."""
        with self._strict():
            function = self._functions[request["callback"]]
            given = [self._decode(one, False) for one in request["arguments"]]
            named = {name: self._decode(one, False) for name, one in request["keywords"].items()}
        try:
            return {"value": encode(function(*given, **named), self._refer)}
        except AssertionError:
            self.failed = True
            raise Gone from None
        except Exception as error:
            return {"error": type(error).__name__, "arguments": [str(error)]}

    def _refer(self, value: Any) -> dict[str, Any]:
        if isinstance(value, Remote):
            return {"own": object.__getattribute__(value, "_Remote__number")}
        if not callable(value):
            raise TypeError(
                f"an object of {type(value).__name__} cannot be given to a program: plain values and functions can"
            )
        self._functions.append(value)
        name, doc = getattr(value, "__name__", "callback"), getattr(value, "__doc__", None)
        return {"callback": [len(self._functions) - 1, str(name), doc if type(doc) is str else None]}

    def _decode(self, content: Any, whole: bool, **flags: bool) -> Any:
        def resolve(name: str, inner: Any) -> Any:
            if name == "own":
                return self._functions[inner]
            if name == "exception":
                found = self._exception_class(inner)
                if issubclass(AssertionError, found):
                    # `MyError = Exception`: `except MyError` would catch the failed assertions of the tests.
                    raise ValueError(name)
                return found
            if name == "coroutine" and type(inner) is int:
                return self._coroutine(inner, whole)
            if name == "remote":
                number, title, *optional = inner
                # The same object gives the same proxy: tests may compare with `is`.
                flags["named"] = flags.get("named", False) and "call" in optional
                key = (number, title, whole, *(flag for flag in sorted(flags) if flags[flag]))
                if key not in self._remotes:
                    if not (type(number) is int and all(one in OPTIONAL for one in optional)):
                        raise ValueError(name)
                    self._remotes[key] = _remote_class(title, frozenset(optional))(self, number, whole, **flags)
                return self._remotes[key]
            raise ValueError(name)

        return decode(content, resolve)

    async def _coroutine(self, number: int, whole: bool) -> Any:
        """Run a coroutine of the program, when the tests await it."""
        reply = self._ask(
            {"do": "operator", "target": "await", "arguments": [{"own": number}], "keywords": {}, "whole": whole}
        )
        return self._result(reply, whole)

    def _exception(self, reply: Mapping[str, Any]) -> Exception:
        kind = self._exception_class(reply["error"])
        arguments = [self._decode(one, False) for one in reply["arguments"]]
        try:
            error = kind(*arguments)
        except Exception:
            error = kind.__new__(kind, *arguments)
        for name, content in reply["attributes"].items():
            error.__dict__[name] = self._decode(content, False)
        if kind in self._exceptions.values():
            error.__dict__["_text"] = str(reply["text"])
        return error

    def _exception_class(self, names: list[list[str]]) -> type[Exception]:
        """Return the first class of an exception's MRO that exists here. Classes of the program are mirrored under the same name."""
        (module, name), *others = names
        if module == "__main__":
            if (module, name) not in self._exceptions:
                fields = {"__str__": lambda self: self.__dict__.get("_text", "")}
                self._exceptions[module, name] = type(name.rpartition(".")[2], (self._exception_class(others),), fields)
            return self._exceptions[module, name]
        # Exceptions of test frameworks have a meaning there: unittest.SkipTest would skip the test.
        known = module.partition(".")[0] not in ("unittest", "doctest", "bdb")
        found = getattr(sys.modules.get(module), name, None) if known else None
        if not (isinstance(found, type) and issubclass(found, Exception)):
            return self._exception_class(others)
        # As in generators (PEP 479): a StopIteration would silently end a loop of the tests.
        return RuntimeError if issubclass(found, StopIteration | StopAsyncIteration) else found

    @contextlib.contextmanager
    def _strict(self) -> Iterator[None]:
        """Treat any error in a reply as the end of the program."""
        try:
            yield
        except Exception:
            self.failed = True
            raise Gone from None


class Remote:
    """Proxy of a function, class or object of the program.

    Args:
        client: Connection to the program.
        number: Number of the object in the program.
        whole: The object is a class that the tests named, or comes from one. Its methods can be called with arguments, and results keep
            their classes (`class Stack(list)`).
        named: The object is a class that the tests named.
        built: The tests created the object by a call of such a class or by an operator on such an object, or the object is an attribute
            of such a class. Operators then take plain values.
        limited: The object is a method of an object that a function returned, and plain values have a method of that name.
    """

    __slots__ = ("__built", "__client", "__limited", "__named", "__number", "__whole")

    def __init__(
        self, client: _Client, number: int, whole: bool, named: bool = False, built: bool = False, limited: bool = False
    ):
        # `__setattr__` of this class would send a request.
        names = ("client", "number", "whole", "named", "built", "limited")
        for name, value in zip(names, (client, number, whole, named, built, limited), strict=True):
            object.__setattr__(self, f"_Remote__{name}", value)

    def __getattr__(self, name: str) -> Any:
        if name == "__signature__":
            raise TypeError("the signature of a program's function cannot be inspected")
        named = self.__named and name[:1].isupper()
        limited = not self.__whole and name in _METHODS_OF_VALUES
        flags = {"named": named, "built": self.__named, "limited": limited}
        return self.__client.request("attribute", self.__number, (name,), {}, self.__whole, **flags)

    def __setattr__(self, name: str, value: Any) -> None:
        self.__client.request("assign", self.__number, (name, value), {}, False)

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, Remote) and self.__operate("isinstance", value, self) is True

    def __subclasscheck__(self, value: Any) -> bool:
        return isinstance(value, Remote) and self.__operate("issubclass", value, self) is True

    def __eq__(self, other: object) -> bool:
        return False if other is None else self.__compare("eq", other)

    def __ne__(self, other: object) -> bool:
        return True if other is None else self.__compare("ne", other)

    def __compare(self, name: str, other: object) -> bool:
        if isinstance(other, Remote):
            return self.__operate(name, self, other) is True
        # An instance of `class Level(IntEnum)` is compared here, by its plain value.
        value = self.__client.request("plain", self.__number, (), {}, False) if self.__whole else self
        if isinstance(value, Remote):
            raise TypeError(f"an object of the program cannot be compared with {type(other).__name__}")
        return getattr(operator, name)(value, other) is True

    def __binary(self, name: str, other: Any, reflected: bool = False) -> Any:
        if not (self.__built or isinstance(other, Remote)):
            # The plain value may be the expected result: do not show it to the program.
            return NotImplemented
        return self.__operate(name, *((other, self) if reflected else (self, other)))

    def __operate(self, name: str, *values: Any) -> Any:
        return self.__client.request("operator", name, values, {}, self.__whole, built=self.__built)

    def __do_call(self, *arguments: Any, **keywords: Any) -> Any:
        if (arguments or keywords) and self.__limited:
            # `f(x).startswith("a")`: the object could answer True to everything.
            raise TypeError("a function of the program returned an object; this method of it cannot take arguments")
        return self.__client.request("call", self.__number, arguments, keywords, self.__whole, built=self.__named)

    def __do_iter(self) -> Any:
        return self.__operate("iter", self)

    def __do_next(self) -> Any:
        return self.__client.next(self.__number, self.__whole)

    def __do_enter(self) -> Any:
        return self.__operate("enter", self)

    def __do_exit(self, kind: object, error: object, trace: object) -> None:
        self.__operate("exit", self)

    def __do_contains(self, item: Any) -> bool:
        if self.__whole:
            return self.__operate("contains", self, item) is True
        # Compare here: the object could contain everything.
        return any(item is one or item == one for one in self.__do_iter())


_MUTATORS = "add append appendleft clear discard extend insert pop popitem remove reverse setdefault sort update"
_METHODS_OF_VALUES = {
    name for kind in (bool, bytes, complex, dict, float, list, set, str, tuple) for name in dir(kind)
} - set(_MUTATORS.split())
"""Methods that tests call on plain values. Methods that change an object are not asked for an expected result."""


def _unary(name: str) -> Callable[..., Any]:
    return lambda self: self._Remote__operate(name, self)


def _binary(name: str) -> Callable[..., Any]:
    return lambda self, other: self._Remote__binary(name, other)


def _reflected(name: str) -> Callable[..., Any]:
    return lambda self, other: self._Remote__binary(name, other, reflected=True)


def _item(name: str) -> Callable[..., Any]:
    return lambda self, *values: self._Remote__operate(name, self, *values)


def _ordered(name: str) -> Callable[..., Any]:
    return lambda self, other: self._Remote__compare(name, other)


_ARITHMETIC = "add sub mul matmul truediv floordiv mod pow and or xor lshift rshift"
_OPERATORS = {
    "abs neg pos invert bool int float complex str repr hash round reversed": _unary,
    _ARITHMETIC: _binary,
    "lt le gt ge": _ordered,
}
for _group, _make in _OPERATORS.items():
    for _name in _group.split():
        # The operator module spells them and_ and or_.
        _spelled = f"{_name}_" if _name in ("and", "or") else _name
        setattr(Remote, f"__{_name}__", _make(_spelled))
        if _group == _ARITHMETIC:
            setattr(Remote, f"__r{_name}__", _reflected(_spelled))
Remote.__doc__ = property(
    lambda self: self._Remote__client.request("attribute", self._Remote__number, ("__doc__",), {}, False)
)


@functools.cache
def _remote_class(title: str, optional: frozenset[str]) -> type[Remote]:
    """Return the class of proxies of objects whose class has this name and these special methods."""
    made = {"len": _unary, "getitem": _item, "setitem": _item, "delitem": _item}
    methods = {
        f"__{name}__": made[name](name) if name in made else getattr(Remote, f"_Remote__do_{name}") for name in optional
    }
    return type(title, (Remote,), {"__slots__": (), **methods, "__doc__": Remote.__dict__["__doc__"]})


def _replace(old: Any, new: Any) -> None:
    """Apply the program's modification of an argument."""
    kind = type(old)
    if kind not in MUTABLE or type(new) is not kind:
        raise TypeError
    if kind in (list, bytearray):
        old[:] = new
        return
    old.clear()
    old.extend(new) if hasattr(old, "extend") else old.update(new)
