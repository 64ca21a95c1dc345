"""What an isolated program can reach, as root and as an ordinary user, and what happens where programs cannot be isolated."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from plamo2_jax.align.preference_data.config import PreferenceDataConfig
from plamo2_jax.align.preference_data.sampling import make_preference_data
from plamo2_jax.eval.answer_rules import check_rules, score
from plamo2_jax.models import ChatModelConfig
from plamo2_jax.sandbox import Limits, SandboxError, check, isolation_problem, passes

SOURCES = Path(check.__file__).parents[2]
needs_isolation = pytest.mark.skipif(isolation_problem() is not None, reason=str(isolation_problem()))


def finds(expression, limits=None):
    """Whether an expression is true in a program."""
    return passes(f"import os\ndef f(): return bool({expression})", "assert f()", limits or Limits(seconds=30.0))


@needs_isolation
@pytest.mark.parametrize(
    "expression",
    [
        "set(os.environ) - {'LC_CTYPE'}",
        "os.listdir('.')",
        "os.path.exists('/proc')",
        "os.path.exists('/etc/passwd')",
        "os.path.isabs(os.path.expanduser('~'))",
        "[os.fstat(fd) for fd in range(3, 10)]",
        "os.fork()",
        "__import__('subprocess').run(['/bin/true'])",
        "__import__('threading').Thread(target=print).start() or 1",
        "__import__('socket').socket()",
        "__import__('numpy')",
        "open('big', 'w').write('a' * (4 << 20))",
        "[open(str(n), 'w').write('a' * 1000000) for n in range(40)]",
        "open('/usr/lib/x', 'w')",
        "open(os.__file__, 'a')",
        "os.mkdir('/x') or 1",
        "os.chroot('/tmp') or 1",
        "os.geteuid() == 0",
        "__import__('ctypes').CDLL(None).unshare(0x10000000) == 0",
        "__import__('ctypes').CDLL(None).mount(b'x', b'/tmp', b'tmpfs', 0, 0) == 0",
        "__import__('ctypes').CDLL(None).shmget(0, 4096, 0o1600) >= 0",
        "__import__('ctypes').CDLL(None).ptrace(0, 0, 0, 0) == 0",
        "__import__('resource').setrlimit(__import__('resource').RLIMIT_NOFILE, (999, 999)) or 1",
    ],
)
def test_a_program_does_not_get_what_it_should_not_have(expression):
    assert not finds(expression)
    assert finds("True")


@needs_isolation
def test_files_of_the_user_are_not_there(tmp_path):
    (tmp_path / "secret").write_text("x")
    for path in (tmp_path / "secret", Path.home() / ".bashrc", Path(__file__)):
        assert not finds(f"os.path.exists({str(path)!r})")
    assert not finds(f"open({str(tmp_path / 'new')!r}, 'w')")
    assert list(tmp_path.iterdir()) == [tmp_path / "secret"]


@needs_isolation
def test_nothing_stays_in_shared_folders():
    program = (
        "def f():\n  for place in ('/tmp', '/var/tmp', '/dev/shm', '.'):\n    try: open(place + '/plamo2-left', 'w').write('x')\n"
        "    except OSError: pass"
    )
    folders = [folder for folder in ("/tmp", "/var/tmp", "/dev/shm", tempfile.gettempdir()) if os.path.isdir(folder)]
    assert passes(program, "f()")
    assert not any(os.path.exists(f"{folder}/plamo2-left") for folder in folders)
    assert not finds("os.path.exists('/tmp/plamo2-left')")


@needs_isolation
def test_there_is_no_network(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert not finds(f"__import__('socket').create_connection({server.getsockname()!r}, 2)")
    monkeypatch.setenv("API_KEY", "secret")
    assert not finds("'API_KEY' in os.environ")


@needs_isolation
def test_a_check_ends_in_time_and_leaves_no_process():
    start = time.monotonic()
    assert not passes("def f():\n  while True: pass", "f()", Limits(seconds=0.5))
    assert not passes("def f(): pass", "while True: f()", Limits(seconds=0.5))
    assert time.monotonic() - start < 60
    server, end = check._fork_server._process.pid, time.monotonic() + 60
    while (left := children(server)) and time.monotonic() < end:
        time.sleep(0.05)
    assert left == []


def children(pid):
    """Processes that a process started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text()
        except OSError:
            continue  # It ended.
        if int(text.rpartition(")")[2].split()[1]) == pid:
            found.append(int(path.parent.name))
    return found


def test_a_fork_server_that_was_killed_is_started_again():
    assert passes("x = 1", "assert x == 1", allow_unisolated=True)
    check._fork_server._process.kill()
    assert passes("x = 1", "assert x == 1", allow_unisolated=True)


# An interpreter that other users can read too.
SYSTEM_PYTHON = next((path for path in ("/usr/bin/python3", "/usr/local/bin/python3") if shutil.which(path)), None)
CHECKS = f"""
import sys
sys.path.insert(0, {str(SOURCES)!r})
sys.version_info >= (3, 11) or sys.exit(77)
from plamo2_jax.sandbox import SandboxError, passes
try:
    found = [passes("import math, heapq, dataclasses\\ndef f(x): return math.gcd(x, 12)", "assert f(8) == 4")]
    found.append(passes("import os\\ndef f(): return os.listdir('/')", "assert not {{'home', 'proc', 'var'}} & set(f())"))
    found.append(not passes("def f(x): pass", "assert f(1) == 2"))
    kills = "import os\\nfor pid in (0, -1, 1, os.getppid(), -os.getpgid(0)):\\n  try: os.kill(pid, 9)\\n  except OSError: pass"
    found.append(not passes(kills, "assert f(1) == 2"))
    print(found)
except SandboxError as error:
    print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become others")
@pytest.mark.skipif(SYSTEM_PYTHON is None, reason="no Python of the system")
@pytest.mark.parametrize(
    ("prepare", "expected"),
    [
        ("exec setpriv --reuid 12345 --regid 12345 --clear-groups", "[True, True, True, True]"),
        ("exec setpriv --bounding-set -sys_admin", "[True, True, True, True]"),
        # As in a container: root by name, and no namespaces.
        (
            "echo 0 > /proc/sys/user/max_user_namespaces; exec setpriv --bounding-set -all",
            "this system cannot isolate",
        ),
    ],
    ids=["ordinary user", "root without rights", "no namespaces"],
)
def test_other_users(prepare, expected, tmp_path):
    if shutil.which("setpriv") is None or shutil.which("unshare") is None:
        pytest.skip("util-linux is not there")
    inside = ["unshare", "--user", "--map-root-user"] if "max_user" in prepare else []
    command = [*inside, "sh", "-c", f'{prepare} {SYSTEM_PYTHON} -c "$0"', CHECKS]
    found = subprocess.run(
        command,
        cwd="/",
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,
    )
    if found.returncode == 77 or "unshare failed" in found.stderr or "Permission denied" in found.stderr:
        pytest.skip(f"not here: {found.stderr.strip() or 'the Python of the system is too old'}")
    assert found.stdout.startswith(expected), found.stderr
    assert len(found.stdout) < 400


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
@pytest.mark.parametrize("umask", ["022", "077"])
def test_a_python_below_a_home_that_only_root_may_enter(umask):
    # As with pyenv or uv in a home of mode 700: the user nobody cannot read the standard library there. The mounts are private.
    python = f"/mnt/home/python/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    home = "mount -t tmpfs none /mnt && mkdir -m 700 /mnt/home && mkdir /mnt/home/python"
    prepare = f'{home} && mount --bind {sys.base_prefix} /mnt/home/python && umask {umask} && exec {python} -c "$0"'
    command = ["unshare", "--mount", "sh", "-c", prepare, CHECKS]
    found = subprocess.run(
        command, cwd="/", env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, timeout=60
    )
    if "unshare" in found.stderr or "mount" in found.stderr:
        pytest.skip(f"not here: {found.stderr.strip()}")
    assert found.stdout == "[True, True, True, True]\n", found.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="programs are isolated on Linux only")
def test_a_python_below_tmp_is_named(monkeypatch, tmp_path):
    # Isolated programs have a /tmp of their own, so they could not read the standard library.
    monkeypatch.setattr(sys, "base_prefix", "/tmp/python")
    kind, problem = check._best_isolation.__wrapped__()
    assert kind is None
    assert (
        "Python is in /tmp/python, and an isolated program has a /tmp of its own. Use a Python outside /tmp" in problem
    )


@pytest.fixture
def not_isolated(monkeypatch):
    """A system without namespaces."""
    monkeypatch.setattr(
        check, "_best_isolation", lambda: (None, check._not_isolated("unshare: Operation not permitted"))
    )


RULES = {"code": {"language": "python", "tests": "assert f(1) == 2"}}


def test_without_isolation_code_is_refused_unless_it_is_allowed(not_isolated):
    rules, answer = check_rules(RULES), "```python\ndef f(x): return x + 1\n```"
    with pytest.raises(SandboxError, match=r"cannot isolate untrusted programs .* set allow_unisolated_code"):
        score(rules, answer, True)
    assert score(rules, answer, True, allow_unisolated_code=True) == {"code": 1.0}
    assert score(rules, answer.replace("+ 1", ""), True, allow_unisolated_code=True) == {"code": 0.0}
    assert score(rules, "no code", True) == {"code": 0.0}
    # The library is found there too, wherever it is.
    csv = "import csv, decimal\ndef f(): return list(csv.reader(['1,2']))"
    assert passes(csv, "assert f() == [['1', '2']]", allow_unisolated=True)
    with pytest.raises(SandboxError):
        passes(csv, "assert f() == [['1', '2']]")


def test_preference_data_with_code_are_refused_before_anything_is_written(not_isolated, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a"}\n')
    config = PreferenceDataConfig(tmp_path / "out", (prompts,), ChatModelConfig("none"), rules=RULES)
    with pytest.raises(ValueError, match="cannot isolate"):
        make_preference_data(config)
    assert not (tmp_path / "out").exists()
