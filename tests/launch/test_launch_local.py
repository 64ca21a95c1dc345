"""Processes on this machine, really started."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from plamo2_jax.cli.main import main
from plamo2_jax.launch import local
from plamo2_jax.launch.job import Job
from plamo2_jax.launch.local import Local, Process, plan, run
from support.scripts import AWKWARD, check_bash


def python(source, **environment):
    return Process([sys.executable, "-u", "-c", source], environment)


def test_lines_carry_the_number_of_their_process(capfd):
    sources = [
        "import sys; print('one'); print('two', end=''); print('wrong', file=sys.stderr)",
        "import os; print(os.environ['X'])",
    ]
    assert run([python(source, X="three") for source in sources], grace=5) == 0
    captured = capfd.readouterr()
    assert sorted(captured.out.splitlines()) == ["[0] one", "[0] two", "[1] three"]
    assert captured.err == "[0] wrong\n"


def test_when_one_fails_the_others_are_ended_and_its_status_is_the_launchs(capfd):
    begun = time.monotonic()
    assert run([python("import time; time.sleep(600)"), python("import sys; sys.exit(7)")], grace=300) == 7
    assert time.monotonic() - begun < 250
    assert "process 1 ended with status 7" in capfd.readouterr().err


def test_one_that_does_not_end_is_killed(capfd):
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready'); time.sleep(600)"
    begun = time.monotonic()
    assert run([python(stubborn), python("import time, sys; time.sleep(2); sys.exit(3)")], grace=1) == 3
    assert time.monotonic() - begun < 250


def test_a_process_that_a_signal_ended_counts_as_128_and_its_number(capfd):
    assert run([python("import os; os.kill(os.getpid(), 9)")], grace=1) == 137


SAVES = """
import signal, sys, time
count = 0
def stop(number, frame):
    global count
    count += 1
    print("signal", number, flush=True)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
print("ready", flush=True)
while not count:
    time.sleep(0.05)
time.sleep(1)   # A second signal would be seen while the checkpoint is written.
print("seen", count, flush=True)
sys.exit(143)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_every_process_once(number):
    """To the whole foreground group, as a terminal sends it."""
    source = (
        "import sys; from plamo2_jax.launch.local import Process, run\n"
        f"sys.exit(run([Process([sys.executable, '-c', {SAVES!r}], {{}})] * 2, 30))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", source], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    lines = [process.stdout.readline(), process.stdout.readline()]
    assert sorted(lines) == ["[0] ready\n", "[1] ready\n"]
    os.killpg(process.pid, number)
    rest, _ = process.communicate(timeout=300)
    assert process.returncode == 143
    assert sorted(rest.splitlines()) == ["[0] seen 1", f"[0] signal {number}", "[1] seen 1", f"[1] signal {number}"]


def test_each_process_is_told_its_number_and_all_the_same_address(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_one=1")
    processes = plan(Job("config.py", "x", "runs", ("--steps", "3")), Local(processes=3, devices=4), ("plamo2",))
    (address,) = {process.arguments[process.arguments.index("--distributed.coordinator") + 1] for process in processes}
    assert re.fullmatch(r"127\.0\.0\.1:\d+", address)
    for number, process in enumerate(processes):
        assert process.arguments == [
            *("plamo2", "pretrain", "config.py", "--steps", "3", "--distributed.coordinator", address),
            *("--distributed.process-id", str(number), "--distributed.process-count", "3"),
        ]
        flags = "--xla_one=1 --xla_force_host_platform_device_count=4"
        assert process.environment == {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


def test_a_single_process_is_told_nothing(monkeypatch):
    (process,) = plan(Job("config.py", "x", "runs"), Local(processes=1), ("plamo2",))
    assert process == Process(["plamo2", "pretrain", "config.py"], {})


def test_the_printed_script_passes_bash_and_shellcheck(printed):
    check_bash(printed("local", "--devices", "2", overrides=AWKWARD))


def test_the_printed_script_ends_with_the_status_of_the_first_failure(monkeypatch):
    processes = [Process(["sleep", "600"], {}), Process(["bash", "-c", "exit 7"], {})]
    monkeypatch.setattr(local, "plan", lambda job, options: processes)
    text = local.script(Job("config.py", "x", "runs"), Local(processes=2))
    assert subprocess.run(["bash", "-c", text], timeout=300).returncode == 7
    processes[:] = [Process(["true"], {})] * 2
    text = local.script(Job("config.py", "x", "runs"), Local(processes=2))
    assert subprocess.run(["bash", "-c", text], timeout=300).returncode == 0


def test_a_wrong_configuration_ends_the_launch_with_2(checkout, capfd):
    """One real `plamo2 pretrain`, whose data are not there."""
    assert main(["launch", "local", "configs/demo.py", "--processes", "1"]) == 2
    assert capfd.readouterr().err.startswith("[0] plamo2 pretrain: ")


def test_processes_that_train_together(checkout, capfd):
    """Two real `plamo2 pretrain` whose data are not there: both are told of each other, and say what is missing."""
    assert main(["launch", "local", "configs/demo.py", "--processes", "2", "--devices", "2", "--grace", "5"]) == 2
    assert "plamo2 pretrain: " in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--processes", "0"), "--processes 0 is not allowed: it must be at least 1"),
        (("--devices", "0"), "--devices 0 is not allowed: it must be at least 1"),
        (("--port", "70000"), "--port 70000 is not allowed: it must be at most 65535"),
    ],
)
def test_refusals(refused, arguments, message):
    assert message in refused("local", *arguments)
