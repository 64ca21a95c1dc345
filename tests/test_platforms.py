"""macOS: nothing that only Linux has is used without a check, and what replaces it works."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from plamo2_jax import pattern, storage
from plamo2_jax.data.workers import available_cores

ROOT = Path(__file__).parent.parent
PACKAGES = (ROOT / "src" / "plamo2_jax", ROOT / "kernels")
LINUX_ONLY = {
    "errno": "ERESTART ENOMEDIUM ENOKEY",
    "fcntl": "F_SETPIPE_SZ F_GETPIPE_SZ F_ADD_SEALS F_GET_SEALS F_NOTIFY F_OFD_SETLK F_OFD_SETLKW F_OFD_GETLK",
    "mmap": "MAP_POPULATE MAP_STACK MADV_HUGEPAGE MADV_NOHUGEPAGE MADV_DONTFORK MADV_DONTDUMP MADV_REMOVE",
    "os": "sched_getaffinity sched_setaffinity sched_setscheduler sched_getscheduler posix_fallocate posix_fadvise "
    "memfd_create eventfd eventfd_read eventfd_write pidfd_open splice copy_file_range fdatasync pipe2 getrandom setns "
    "unshare getresuid getresgid setresuid setresgid getxattr setxattr listxattr removexattr timerfd_create "
    "O_DIRECT O_TMPFILE O_PATH O_NOATIME O_LARGEFILE RWF_NOWAIT P_PIDFD MFD_CLOEXEC GRND_NONBLOCK EFD_NONBLOCK",
    "resource": "prlimit RLIMIT_NICE RLIMIT_RTPRIO RLIMIT_SIGPENDING RLIMIT_MSGQUEUE RUSAGE_THREAD",
    "select": "epoll EPOLLIN EPOLLOUT EPOLLET EPOLL_CLOEXEC devpoll",
    "signal": "sigtimedwait sigwaitinfo pidfd_send_signal SIGRTMIN SIGRTMAX SIGPWR SIGSTKFLT SIGPOLL SIGCLD",
    "socket": "SO_PEERCRED AF_NETLINK AF_PACKET AF_VSOCK AF_ALG SO_BINDTODEVICE SOCK_CLOEXEC SOCK_NONBLOCK TCP_QUICKACK "
    "TCP_USER_TIMEOUT TCP_DEFER_ACCEPT SO_PRIORITY SO_MARK SO_DOMAIN SO_PROTOCOL",
    "time": "CLOCK_BOOTTIME CLOCK_TAI pthread_getcpuclockid clock_settime",
}
"""Names of the standard library that Python has on Linux and not on macOS, by module."""
NAMES = {(module, name) for module, names in LINUX_ONLY.items() for name in names.split()}
ISOLATION = "sandbox/isolation.py"
"""Runs after a check of the system; it reports a failing write to /proc itself."""


def checks(node):
    """Return whether an expression asks for the system or for an attribute."""
    return any(
        (isinstance(part, ast.Call) and isinstance(part.func, ast.Name) and part.func.id in ("hasattr", "getattr"))
        or (isinstance(part, ast.Attribute) and ast.unparse(part) in ("sys.platform", "platform.system"))
        for part in ast.walk(node)
    )


def survives(node, error):
    """Return whether a statement catches an error."""
    if isinstance(node, ast.Try):
        return any(handler.type is not None and error in ast.unparse(handler.type) for handler in node.handlers)
    return isinstance(node, ast.With) and any(
        "suppress" in (text := ast.unparse(item)) and error in text for item in node.items
    )


def is_used(node):
    """Return the error with which a use of something that macOS lacks fails there, or None for other code."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return "AttributeError" if (node.value.id, node.attr) in NAMES else None
    if isinstance(node, ast.ImportFrom):
        return "ImportError" if any((node.module, alias.name) in NAMES for alias in node.names) else None
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return "OSError" if node.value.startswith(("/proc/", "/sys/")) else None
    # macOS refuses some limits.
    return "ValueError" if isinstance(node, ast.Call) and ast.unparse(node.func) == "resource.setrlimit" else None


def problems(source):
    """Return what a module uses that macOS lacks, as `LINE: CODE`."""
    found = []

    def visit(node, inside):
        if (error := is_used(node)) and not any(survives(each, error) for each in inside):
            branches = [each for each in inside if isinstance(each, ast.If | ast.IfExp | ast.BoolOp)]
            if error == "ValueError" or not any(map(checks, branches)):
                found.append(f"{node.lineno}: {ast.unparse(node)}")
        for child in ast.iter_child_nodes(node):
            visit(child, (*inside, node))

    visit(ast.parse(source), ())
    return found


def test_the_names_are_those_of_linux():
    """A misspelt name would never be found."""
    if sys.platform == "linux":
        present = {(module, name) for module, name in NAMES if hasattr(__import__(module), name)}
        # Some are of later versions of Python or of other C libraries.
        assert len(NAMES - present) < 12, NAMES - present


@pytest.mark.parametrize(
    "source",
    [
        "os.sched_getaffinity(0)",
        "from select import epoll",
        "def f():\n    return open('/proc/meminfo')",
        "resource.setrlimit(resource.RLIMIT_AS, (1, 1))",
        "try:\n    os.posix_fallocate(0, 0, 1)\nexcept OSError:\n    pass",
    ],
)
def test_the_scan_finds_what_macos_lacks(source):
    assert len(problems(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "if hasattr(os, 'sched_getaffinity'):\n    os.sched_getaffinity(0)",
        "with contextlib.suppress(OSError):\n    Path('/proc/cpuinfo').read_text()",
        "try:\n    os.fdatasync(1)\nexcept AttributeError:\n    os.fsync(1)",
        "os.O_DIRECT if sys.platform == 'linux' else 0",
    ],
)
def test_the_scan_accepts_checks(source):
    assert problems(source) == []


def test_nothing_that_only_linux_has_is_used_without_a_check():
    found, count = [], 0
    for package in PACKAGES:
        for path in package.rglob("*.py"):
            count += 1
            name = path.relative_to(package).as_posix()
            found += [
                f"{name}:{each}"
                for each in problems(path.read_text(encoding="utf-8"))
                if name != ISOLATION or "/proc/self/" not in each
            ]
    assert count > 400
    assert found == []


def test_without_a_call_that_reserves_space_blocks_are_written_again(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.write(b"begin")
        file.truncate(3 << 20)
    before = path.stat().st_blocks
    storage.allocate(path)
    assert path.stat().st_blocks >= 3 << 11 > before
    content = path.read_bytes()
    assert content[:5] == b"begin"
    assert not content[5:].strip(b"\0")


def test_without_affinity_all_cores_count(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert available_cores() == os.cpu_count()


def test_patterns_match_where_address_space_has_no_limit():
    program = "import resource\ndef refuse(*_): raise ValueError('current limit exceeds maximum limit')\nresource.setrlimit = refuse\n"
    done = subprocess.run(
        [sys.executable, "-c", program + pattern._SERVE],
        input='[["a+"], ["caat"], "search"]\n',
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == '{"found": [0]}\n'
