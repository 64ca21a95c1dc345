"""The sbatch script: its directives, its bash, and what it does with each exit status, with stand-ins for the cluster's commands."""

import subprocess

import pytest

from plamo2_jax.cli.main import main
from plamo2_jax.launch.job import AUTO
from support.scripts import AWKWARD, check_bash


def directives(text):
    """Options of the script's #SBATCH lines."""
    lines = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]
    return dict(line.partition("=")[::2] for line in lines)


def test_one_process_a_gpu(printed):
    text = printed("slurm", "--nodes", "4", "--gpus-per-node", "8", "--partition", "h100", "--account", "lab")
    assert directives(text) == {
        "--job-name": "demo",
        "--nodes": "4",
        "--ntasks-per-node": "8",
        "--gpus-per-node": "8",
        "--cpus-per-task": "8",
        "--time": "24:00:00",
        "--partition": "h100",
        "--account": "lab",
        "--output": "demo-%j.log",
        "--open-mode": "append",
        "--signal": "TERM@120",
        "--requeue": "",
    }
    assert "--distributed.coordinator auto" in text
    assert "JAX_LOCAL_DEVICE_IDS" not in text
    check_bash(text)


def test_one_process_a_node_is_told_all_of_the_nodes_gpus(printed):
    text = printed(
        "slurm",
        "--gpus-per-node",
        "4",
        "--processes-per-node",
        "1",
        "--cpus-per-process",
        "16",
        "--setup",
        "module load cuda",
    )
    assert "export JAX_LOCAL_DEVICE_IDS=0,1,2,3\n" in text
    assert "='module load cuda'\n" in text
    # srun does not take it over from sbatch since SLURM 22.05.
    assert directives(text)["--cpus-per-task"] == "16"
    assert "srun --cpus-per-task=16 " in text
    check_bash(text)


def test_each_process_has_cores_for_its_gpus(printed):
    def cores(*arguments):
        text = printed("slurm", *arguments)
        found = directives(text).get("--cpus-per-task")
        assert (f"srun --cpus-per-task={found} " in text) == (found is not None)
        return found

    assert cores() == "8"
    assert cores("--gpus-per-node", "4") == "8"
    assert cores("--gpus-per-node", "4", "--processes-per-node", "1") == "32"
    assert cores("--gpus-per-node", "4", "--cpus-per-process", "3") == "3"
    assert cores("--gpus-per-node", "4", "--cpus-per-process", "0") is None


@pytest.mark.parametrize(
    ("run", "job"), [("Demo_2.5", "Demo_2.5"), ("a b'c%j", "a-b-c-j"), ("-x", "x"), ("é" * 3 + "1", "1")]
)
def test_the_jobs_name_is_the_runs_as_far_as_slurm_takes_it(printed, run, job):
    text = printed("slurm", overrides=(f"--name={run}",))
    assert directives(text)["--job-name"] == job
    assert directives(text)["--output"] == f"{job}-%j.log"


ACTIVATE = """OLD_PROMPT="$PS1"
[ -n "$UNSET_OF_OURS" ] && OLD=1
false | true
grep -q nothing /dev/null
export GREETING="from ${NOWHERE}setup"
"""


@pytest.mark.parametrize(
    ("setup", "status", "said"),
    [
        ("true", 0, "srun ran"),
        ("source ./activate", 0, "srun ran from setup"),
        (". ./activate; set -eux", 0, "srun ran from setup"),
        ("greet() { GREETING=function; export GREETING; }\ngreet", 0, "srun ran function"),
        ("trap 'echo ended as asked' EXIT; export GREETING=trapped", 0, "srun ran trapped\nended as asked"),
        ("cat <<'END' >greeting\nhello\nEND\nGREETING=$(cat greeting) && export GREETING # read", 0, "srun ran hello"),
        ("false", 1, "launch: the setup command failed with status 1; nothing was started"),
        ("source ./nowhere", 1, "launch: the setup command failed with status 1"),
        ("no-such-program", 127, "launch: the setup command failed with status 127"),
        ("if true; then", 2, "launch: the setup command failed with status 2"),
        ("set -e; (exit 7); true", 7, "launch: the setup command ended the shell"),
        ("set -u; echo $NOWHERE; true", 1, "launch: the setup command ended the shell"),
        ("exit 5", 5, "launch: the setup command ended the shell"),
        ("exit 0", 1, "launch: the setup command ended the shell"),
        ("exec 2>/dev/null; false", 1, "launch: the setup command failed with status 1"),
        ("mkdir env && cd env && source ../activate", 0, "srun ran from setup"),
    ],
)
def test_the_setup_runs_without_strict_options_of_ours_and_ends_the_job_where_it_fails(
    printed, tmp_path, setup, status, said
):
    (tmp_path / "activate").write_text(ACTIVATE, encoding="utf-8")
    text = printed("slurm", "--setup", setup)
    check_bash(text)
    script = tmp_path / "job.sh"
    script.write_text(text, encoding="utf-8")
    stand_in = 'srun() { test -f job.sh && echo "srun ran $GREETING"; }; export -f srun; exec bash job.sh'
    done = subprocess.run(
        ["bash", "-c", stand_in], env={"PATH": "/usr/bin:/bin"}, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == status, done.stderr
    assert said in done.stdout + done.stderr
    assert ("srun ran" in done.stdout) == (status == 0)


@pytest.mark.parametrize(
    ("status", "state", "requeued"),
    [
        (0, "RUNNING", False),
        (1, "RUNNING", False),
        (2, "RUNNING", False),
        (143, "RUNNING", True),
        (143, "CANCELLED", False),
    ],
)
def test_only_a_run_that_was_stopped_is_queued_again(printed, tmp_path, status, state, requeued):
    text = printed("slurm", "--job-name", "x", "--sbatch-flag=--qos=a b", overrides=AWKWARD)
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, body in {
        "srun": f'shift 2; printf "%s\\0" "$@" >"{tmp_path}/srun"; exit {status}',
        "squeue": f"echo {state}",
        "scontrol": f'echo "$@" >"{tmp_path}/scontrol"',
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        (tools / name).chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", text], env={"PATH": f"{tools}:/usr/bin:/bin", "SLURM_JOB_ID": "17"}, cwd=tmp_path
    )
    assert done.returncode == status
    assert (tmp_path / "scontrol").exists() == requeued
    if requeued:
        assert (tmp_path / "scontrol").read_text() == "requeue 17\n"
    command = (tmp_path / "srun").read_bytes().decode().rstrip("\0").split("\0")
    assert command == [".venv/bin/plamo2", "pretrain", "configs/demo.py", *AWKWARD, *AUTO]
    assert not (tmp_path / "broken").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nodes", "0"], "--nodes 0 is not allowed: it must be at least 1"),
        (["--gpus-per-node", "8", "--processes-per-node", "3"], "a divisor of --gpus-per-node 8"),
        (["--gpus-per-node", "8", "--processes-per-node", "2"], "it must be 1 or --gpus-per-node 8"),
        (["--time", "soon"], "--time soon is not allowed"),
        (["--partition", "a b"], "a name without spaces"),
        (["--sbatch-flag=qos"], "it must be one option"),
        (["--cpus-per-process", "-1"], "--cpus-per-process -1 is not allowed: it must be at least 0"),
        (["--job-name", "a b"], "--job-name 'a b' is not allowed"),
        (["--job-name", "a/b"], "--job-name 'a/b' is not allowed"),
        (["--job-name", "%j"], "--job-name '%j' is not allowed"),
        (["--job-name=-a"], "--job-name '-a' is not allowed"),
        (["--job-name", ""], "--job-name '' is not allowed"),
        (["--job-name", "a" * 201], "at most 200 characters"),
    ],
)
def test_refusals(refused, arguments, message):
    assert message in refused("slurm", *arguments)


def test_an_output_on_each_nodes_own_disk_is_warned_of(checkout, capsys):
    assert main(["launch", "slurm", "configs/demo.py", "--nodes", "2", "--dry-run", "--", "--output", "/tmp/runs"]) == 0
    assert "output /tmp/runs is on the disk of each node" in capsys.readouterr().err


def test_where_there_is_no_sbatch_it_says_so(refused, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "sbatch is not on PATH: run this on a login node" in refused("slurm")
