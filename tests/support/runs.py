"""What a run left behind, and runs in processes of their own."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from plamo2_jax import checkpoint
from plamo2_jax.model.plamo2 import Plamo2, abstract_params
from plamo2_jax.train.config import RunConfig
from plamo2_jax.train.metrics import read_metrics
from support.xla import xla_flags


def held(step: int) -> str:
    """A preamble with which a run goes no further than a step until a signal asks it to end: however fast or slow the machine is, what a
    test does to the run finds it there. It ends with the test's process in any case.
    """
    return f"""
import os, time
from plamo2_jax.train.preemption import Preemption
from plamo2_jax.train.step_metrics import StepMetrics

parent, requests = os.getppid(), []
enter, add = Preemption.__enter__, StepMetrics.add

def add_and_hold(self, step, metrics):
    add(self, step, metrics)
    while step == {step} and requests[-1].signal is None and os.getppid() == parent:
        time.sleep(0.02)

Preemption.__enter__ = lambda self: requests.append(self) or enter(self)
StepMetrics.add = add_and_hold
"""


def stop_after(step):
    """Ends a run the way a scheduler does."""
    return lambda done: signal.raise_signal(signal.SIGTERM) if done == step else None


def record(config):
    """The lines of a run's log without the clock's figures. JSON spells floats so that they read back to the same bits."""
    clock = ("time", "tokens_per_second", "trained_tokens_per_second", "mfu", "data_wait", "goodput")
    lines = read_metrics(config.folder / "metrics.jsonl")
    return [
        {
            name: value
            for name, value in line.items()
            if name not in clock and not name.startswith(("step_seconds", "goodput_"))
        }
        for line in lines
    ]


def params_of(config, step=None):
    return checkpoint.restore_params(config.folder, abstract_params(Plamo2(config.model)), step)


def assert_same_params(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def write_config(config: RunConfig, folder: Path) -> Path:
    """A config file that sets `config`."""
    path = folder / "config.py"
    path.write_text(
        "from pathlib import *\n"
        "from plamo2_jax.config import *\n"
        "from plamo2_jax.data.pipeline import *\n"
        "from plamo2_jax.sharding.mesh import *\n"
        "from plamo2_jax.train.benchmarks import *\n"
        "from plamo2_jax.train.config import *\n"
        "from plamo2_jax.train.loss_guard import *\n"
        "from plamo2_jax.train.optimizer import *\n"
        "from plamo2_jax.train.pretraining import *\n"
        "from plamo2_jax.train.schedule import *\n"
        f"config = {config!r}\n"
    )
    return path


def start(
    config_file: Path, *options: str, devices: int = 1, preamble: str = "", **environment: str
) -> subprocess.Popen:
    """`plamo2 pretrain`, on so many CPU devices.

    Args:
        config_file: the run.
        options: further options of the command.
        devices: of this process.
        preamble: Python that runs first.
        environment: variables to set.
    """
    program = f"import sys\n{preamble}\nfrom plamo2_jax.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", program, "pretrain", str(config_file), *options],
        env={**os.environ, "XLA_FLAGS": xla_flags(devices), **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen, timeout: float = 300) -> tuple[int, list[str]]:
    """Exit status, and the lines of stderr without those of the progress bar and of the start."""
    _, error = process.communicate(timeout=timeout)
    lines = error.replace("\r", "\n").splitlines()
    bar = ("step/s", "s/step", "?step")
    start = (" activations", "devices: ", "steps: ", "start: ", "compiling the train step", "compiled in ")
    return process.returncode, [
        line for line in lines if line.strip() and not any(part in line for part in bar + start)
    ]


def job(config_file: Path, *options: str, preambles: Sequence[str] = ("", "")) -> list[subprocess.Popen]:
    """The processes of a job of several, by what runs first in each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    named = ["--distributed.coordinator", f"127.0.0.1:{port}", "--distributed.process-count", str(len(preambles))]
    return [
        start(config_file, *options, *named, "--distributed.process-id", str(index), preamble=preamble)
        for index, preamble in enumerate(preambles)
    ]


def wait_for(condition, process: subprocess.Popen, timeout: float = 240) -> None:
    """Wait until something is true of a running process."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)
