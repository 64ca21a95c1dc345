"""Programs of others, run in a process of their own with nothing in it and little to spend.

The process has an empty environment, an empty working folder that is removed afterwards, no descriptors but its input and output, no
packages (`python -I -S`), and no way to start other processes or threads. Time, memory, output and open files are limited. Where the
system lets us, it has no network, as root it is nobody, and it cannot gain rights. It can read what that user can read: it is
a fence around careless programs, not around an attacker with a hole in the kernel.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one program may spend."""

    seconds: float = 5.0
    """By the clock; of processor time, the next whole second."""
    memory: int = 512 << 20
    """Bytes of address space."""
    output: int = 1 << 20
    """Bytes of output, and of a file."""


_LINUX_NEW_USER, _LINUX_NEW_NETWORK, _PR_SET_NO_NEW_PRIVS = 0x10000000, 0x40000000, 38
_NOBODY = 65534

# The nonce is read behind the tests, so that a program which ends before them has not passed.
_RUN = f"""
import json, os, resource, sys
given = json.loads(sys.stdin.readline())
cut = False
try:
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl({_PR_SET_NO_NEW_PRIVS}, 1, 0, 0, 0)
    cut = libc.unshare({_LINUX_NEW_NETWORK}) == 0 or libc.unshare({_LINUX_NEW_USER} | {_LINUX_NEW_NETWORK}) == 0
except (ImportError, OSError, AttributeError):
    pass
for name, value in given["limits"].items():
    try:
        resource.setrlimit(getattr(resource, name), (value, value))
    except (AttributeError, ValueError, OSError):
        pass  # macOS knows the limit on memory, and refuses it.
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid({_NOBODY})
    os.setuid({_NOBODY})
scope = {{"__name__": "__main__"}}
for part in ("program", "tests"):
    exec(compile(given[part], part, "exec"), scope)
sys.stdout.flush()
os.write(1, b"\\n" + (b"no network " if cut else b"network ") + sys.stdin.readline().encode())
os._exit(0)
"""


def passes(program: str, tests: str, limits: Limits | None = None) -> bool:
    """Whether a Python program and then tests, in its scope, run to their end without an exception and within the limits."""
    return _run(program, tests, limits or Limits()) is not None


@functools.cache
def cuts_network() -> bool:
    """Whether this system lets us take the network away."""
    return _run("", "", Limits(seconds=60.0)) == "no network"


def _run(program: str, tests: str, limits: Limits) -> str | None:
    """What became of the network, where all of it ran to the end; else None."""
    nonce = secrets.token_hex(16)
    resources = {
        "RLIMIT_CPU": int(limits.seconds) + 1,
        "RLIMIT_AS": limits.memory,
        "RLIMIT_FSIZE": limits.output,
        "RLIMIT_NPROC": 0,
        "RLIMIT_NOFILE": 32,
        "RLIMIT_CORE": 0,
    }
    given = json.dumps({"program": program, "tests": tests, "limits": resources})
    with (
        tempfile.TemporaryDirectory(prefix="plamo2-code-") as folder,
        tempfile.TemporaryFile() as source,
        tempfile.TemporaryFile() as output,
    ):
        os.chmod(folder, 0o777)  # As root the program is nobody.
        source.write(f"{given}\n{nonce}\n".encode())
        source.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _RUN],
            stdin=source,
            stdout=output,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            start_new_session=True,
        )
        try:
            status = process.wait(limits.seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            # Its group, whatever is left of it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0, os.SEEK_END)
        output.seek(max(0, output.tell() - 100))
        network, _, said = (
            output.read().decode(errors="replace").rpartition("\n")[0].rpartition("\n")[2].rpartition(" ")
        )
        return network if status == 0 and said == nonce else None
