"""Runs in processes of their own."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from plamo2_jax.train.config import PretrainConfig


def write_config(config: PretrainConfig, folder: Path) -> Path:
    """A config file that sets `config`."""
    path = folder / "config.py"
    path.write_text(
        "from pathlib import *\n"
        "from plamo2_jax.config import *\n"
        "from plamo2_jax.data.pipeline import *\n"
        "from plamo2_jax.train.config import *\n"
        "from plamo2_jax.train.guard import *\n"
        "from plamo2_jax.train.optimizer import *\n"
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
        env={**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen, timeout: float = 300) -> tuple[int, list[str]]:
    """Exit status, and the lines of stderr without those of the progress bar."""
    _, error = process.communicate(timeout=timeout)
    return process.returncode, [
        line
        for line in error.replace("\r", "\n").splitlines()
        if line.strip() and "step/s" not in line and "?step" not in line
    ]


def job(config_file: Path, *options: str, count: int = 2, **arguments) -> list[subprocess.Popen]:
    """The processes of a job of several."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    named = ["--distributed.coordinator", f"127.0.0.1:{port}", "--distributed.process-count", str(count)]
    return [
        start(config_file, *options, *named, "--distributed.process-id", str(index), **arguments)
        for index in range(count)
    ]
