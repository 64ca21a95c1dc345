"""Runs readers on damaged files in a process of its own, and sorts what comes of it.

accepted    the reader returned
clear       an error meant for the user, one line that names the file or folder
vague       an error meant for the user that does not
traceback   an exception that the command line does not turn into a sentence, or a dead process
hang        no end within HANG_CPU_SECONDS of the reader's CPU time, or within HANG_SECONDS, twice
memory      more than MEMORY_BYTES above what the process had
escape      a file outside the folder was read or written
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from support.fuzz import targets
from support.fuzz.mutations import mutate

# CPU time, since a reader on a busy machine may wait long for its turn. The clock ends a reader that only waits.
HANG_CPU_SECONDS = 10.0
HANG_SECONDS = 60.0
MEMORY_BYTES = 1 << 30
CATEGORIES = ("accepted", "clear", "vague", "traceback", "hang", "memory", "escape")
FORBIDDEN = ("traceback", "hang", "memory", "escape")
_LONGEST_MESSAGE = 600


@dataclasses.dataclass(frozen=True)
class Case:
    """A target, one of its files, and the seed of the damage."""

    target: str
    file: str
    seed: int


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of a case."""

    case: Case
    category: str
    mutation: str
    message: str


def cases(count: int, first_seed: int, seeds: Path) -> list[Case]:
    """`count` cases, spread evenly over all files of all targets."""
    files = [(target, file) for target in sorted(targets.TARGETS) for file in targets.files(seeds, target)]
    return [Case(*files[i % len(files)], first_seed + i) for i in range(count)]


def run(todo: Iterable[Case], seeds: Path, on_result: object = None) -> list[Result]:
    """Run cases one after another, with a new process after each that died, hung or grew."""
    results: list[Result] = []
    worker: _Worker | None = None
    try:
        for case in todo:
            worker = worker or _Worker(seeds)
            result = worker.run(case)
            if result.category == "hang":  # Once more, alone: the machine may have been busy.
                worker.close()
                worker = _Worker(seeds)
                result = worker.run(case)
            if not worker.alive:
                worker.close()
                worker = None
            results.append(result)
            if callable(on_result):
                on_result(result)
    finally:
        if worker is not None:
            worker.close()
    return results


def count(results: Iterable[Result]) -> dict[str, Counter]:
    """Results by target and category."""
    table: dict[str, Counter] = {}
    for result in results:
        table.setdefault(result.case.target, Counter())[result.category] += 1
    return table


class _Worker:
    """A process that runs cases, watched for time and memory."""

    def __init__(self, seeds: Path):
        roots = filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")))
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(seeds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(roots)},
        )
        self.alive = True
        if self._process.stdout.readline().strip() != "ready":
            raise RuntimeError("the process that reads damaged files did not start; a sound file may be refused")

    def run(self, case: Case) -> Result:
        self._process.stdin.write(json.dumps(dataclasses.asdict(case)) + "\n")
        self._process.stdin.flush()
        base, killed = _resident(self._process.pid), []
        done = threading.Event()
        watch = threading.Thread(target=self._watch, args=(base, done, killed), daemon=True)
        watch.start()
        line = self._process.stdout.readline()
        done.set()
        watch.join()
        if killed or not line:
            self.alive = False
            return Result(case, killed[0] if killed else "traceback", "", "" if killed else "the process died")
        answer = json.loads(line)
        self.alive = answer["category"] not in FORBIDDEN
        return Result(case, **answer)

    def _watch(self, base: int, done: threading.Event, killed: list[str]) -> None:
        start, start_cpu = time.monotonic(), _cpu_seconds(self._process.pid)
        while not done.wait(0.05):
            grown = _resident(self._process.pid) - base > MEMORY_BYTES
            spent = _cpu_seconds(self._process.pid) - start_cpu
            if grown or spent > HANG_CPU_SECONDS or time.monotonic() - start > HANG_SECONDS:
                killed.append("memory" if grown else "hang")
                self._process.kill()
                return

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.kill()
        self._process.wait()


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    except (OSError, IndexError):
        return 0


def _cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and of its children that have ended, or 0 where /proc does not exist."""
    try:
        # The name of the program is in parentheses, and may contain spaces. utime, stime, cutime and cstime follow it.
        times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]
        return sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return 0.0


def _serve(seeds: Path) -> None:
    """Read every sound seed once, then cases from standard input."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Readers may print.
    with tempfile.TemporaryDirectory(prefix="fuzz-") as temporary:
        outside = Path(temporary, "outside")
        outside.mkdir()
        for target in sorted(targets.TARGETS):
            with _copy(seeds / target, Path(temporary)) as folder:
                targets.TARGETS[target].read(folder)
        print("ready", file=answers, flush=True)
        for line in sys.stdin:
            print(
                json.dumps(run_here(Case(**json.loads(line)), seeds, Path(temporary), outside)),
                file=answers,
                flush=True,
            )


@contextlib.contextmanager
def _copy(seed: Path, temporary: Path) -> Iterator[Path]:
    folder = temporary / "case"
    shutil.copytree(seed, folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_here(case: Case, seeds: Path, temporary: Path, outside: Path) -> dict[str, str]:
    with _copy(seeds / case.target, temporary) as folder:
        (outside / "secret.txt").write_bytes(b"secret")
        # A file that is older than its last change gets a new time when it is read, by whatever means.
        os.utime(outside / "secret.txt", (0, 1))
        mutation = mutate(folder, case.file, case.seed, outside)
        category, message = read(case, folder)
        status = (outside / "secret.txt").stat()
        allowed = mutation == "link out" and targets.TARGETS[case.target].follows_links
        if not allowed and (status.st_atime != 0 or status.st_mtime != 1 or len(list(outside.iterdir())) != 1):
            category = "escape"
        for path in temporary.iterdir():
            if path not in (outside, folder):
                category, message = "escape", f"{path} was written"
                shutil.rmtree(path, ignore_errors=True)
        return {"category": category, "mutation": mutation, "message": message}


def read(case: Case, folder: Path) -> tuple[str, str]:
    try:
        targets.TARGETS[case.target].read(folder)
    except (ValueError, OSError) as error:  # What the command line turns into one sentence and status 2.
        message = str(error)
        names = (Path(case.file).name, str(folder), *targets.TARGETS[case.target].names)
        clear = len(message) <= _LONGEST_MESSAGE and "\n" not in message and any(name in message for name in names)
        return ("clear" if clear else "vague"), f"{type(error).__name__}: {message}"[:1000]
    except MemoryError:
        return "memory", "MemoryError"
    except BaseException:
        return "traceback", traceback.format_exc()[-1500:]
    return "accepted", ""


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
