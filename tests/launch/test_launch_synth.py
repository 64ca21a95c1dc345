"""Workers of `plamo2 synth` under SLURM and in Kubernetes: script, manifest, restarts, refusals, and the page about them."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from plamo2_jax.cli.main import main
from support.scripts import check_bash

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "synthetic_cluster.md").read_text(encoding="utf-8")
IMAGE = ("--image", "us-docker.pkg.dev/project/images/plamo2:1", "--volume-claim", "shared")


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Write a config, and return its path."""
    monkeypatch.chdir(tmp_path)

    def write(output="/shared/runs/news_synth", name="synth.yaml", **generator):
        model = {"model": "plamo", "url": "http://llm:8000/v1", **generator}
        content = {"output": output, "recipes": [{"name": "rephrase_simple_ja"}], "generator": model}
        Path(name).write_text(yaml.safe_dump(content), encoding="utf-8")
        return name

    return write


@pytest.fixture
def printed(config, capsys):
    def run(place, *options, **fields):
        assert main(["launch", place, config(**fields), *options, "--dry-run"]) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        return captured.out

    return run


def test_an_array_has_a_task_for_each_worker(printed):
    text = printed("synth-slurm", "--workers", "16", "--at-once", "8", "--partition", "cpu", "--setup", "module load x")
    lines = dict(
        line.removeprefix("#SBATCH ").partition("=")[::2] for line in text.splitlines() if line.startswith("#SBATCH")
    )
    assert lines == {
        "--job-name": "news_synth",
        "--array": "0-15%8",
        "--ntasks": "1",
        "--cpus-per-task": "4",
        "--time": "24:00:00",
        "--partition": "cpu",
        "--output": "news_synth-%A-%a.log",
        "--open-mode": "append",
        "--signal": "TERM@180",
        "--requeue": "",
    }
    assert 'plamo2 synth synth.yaml --worker-index "$SLURM_ARRAY_TASK_ID"\n' in text
    assert "module load x" in text
    assert "--gpus=2\n" in printed("synth-slurm", "--gpus-per-worker", "2")
    check_bash(text)


@pytest.mark.parametrize(
    ("status", "state", "restarted", "requeued"),
    [
        (0, "RUNNING", "0", False),
        (1, "RUNNING", "0", False),
        (2, "RUNNING", "0", False),
        (75, "RUNNING", "0", True),
        (143, "RUNNING", "2", True),
        (143, "RUNNING", "3", False),
        (143, "CANCELLED", "0", False),
    ],
)
def test_only_a_stopped_worker_or_one_without_a_server_is_queued_again(
    printed, tmp_path, status, state, restarted, requeued
):
    text = printed("synth-slurm", "--restarts", "3", name="a b'$(touch broken).yaml")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, body in {
        "srun": f'printf "%s\\0" "$@" >"{tmp_path}/srun"; exit {status}',
        "squeue": f'echo "$@" >"{tmp_path}/squeue"; echo {state}',
        "scontrol": f'echo "$@" >"{tmp_path}/scontrol"',
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        (tools / name).chmod(0o755)
    environment = {
        "PATH": f"{tools}:/usr/bin:/bin",
        "SLURM_ARRAY_JOB_ID": "17",
        "SLURM_ARRAY_TASK_ID": "5",
        "SLURM_RESTART_COUNT": restarted,
        "LAUNCH_PAUSE": "0",
    }
    done = subprocess.run(["bash", "-c", text], env=environment, cwd=tmp_path)
    assert done.returncode == status
    words = (tmp_path / "srun").read_bytes().decode().rstrip("\0").split("\0")
    assert words[1:] == [".venv/bin/plamo2", "synth", "a b'$(touch broken).yaml", "--worker-index", "5"]
    assert (tmp_path / "scontrol").exists() == requeued
    if requeued:
        assert (tmp_path / "scontrol").read_text() == "requeue 17_5\n"
    assert not (tmp_path / "broken").exists()


def test_a_job_has_a_pod_for_each_worker(printed):
    (document,) = yaml.safe_load_all(
        printed("synth-gke", *IMAGE, "--workers", "8", "--restarts", "5", "--spot", "--api-key-secret", "keys",
                api_key_env="LLM_KEY")
    )  # fmt: skip
    spec = document["spec"]
    assert (document["metadata"]["name"], spec["completionMode"]) == ("news-synth", "Indexed")
    assert (spec["parallelism"], spec["completions"], spec["backoffLimitPerIndex"]) == (8, 8, 5)
    rules = [(rule["action"], rule.get("onExitCodes", {}).get("values")) for rule in spec["podFailurePolicy"]["rules"]]
    assert rules == [("Ignore", None), ("FailJob", [2]), ("FailIndex", [1])]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["plamo2", "synth", "synth.yaml", "--worker-index", "$(WORKER_INDEX)"]
    index, key = container["env"]
    assert index["name"] == "WORKER_INDEX"
    assert key == {"name": "LLM_KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "LLM_KEY"}}}
    assert container["volumeMounts"] == [{"name": "shared", "mountPath": "/shared"}]
    assert pod["volumes"] == [{"name": "shared", "persistentVolumeClaim": {"claimName": "shared"}}]
    assert pod["nodeSelector"] == {"cloud.google.com/gke-spot": "true"}


def test_the_schema_of_a_job_holds_and_paths_are_not_expanded(printed):
    kubernetes = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed (test extra)")
    text = printed("synth-gke", *IMAGE, "--spot", "--service-account", "s", name="a$(HOME).yaml")
    (document,) = yaml.safe_load_all(text)
    kubernetes.validate(document, kubernetes.latest_version(), strict=True)
    assert document["spec"]["template"]["spec"]["containers"][0]["command"][2] == "a$$(HOME).yaml"


@pytest.mark.parametrize(
    ("place", "options", "fields", "message"),
    [
        ("synth-slurm", ["--workers", "0"], {}, "--workers 0 is not allowed: it must be at least 1"),
        ("synth-slurm", ["--time", "soon"], {}, "--time soon is not allowed"),
        ("synth-slurm", ["--partition", "a b"], {}, "a name without spaces"),
        ("synth-slurm", ["--sbatch-flag=qos"], {}, "it must be one option"),
        (
            "synth-slurm",
            [],
            {"output": "gs://bucket/x"},
            "is in a bucket, which does not support atomic links and renames",
        ),
        ("synth-gke", [], {}, "the container image is missing: give --image"),
        ("synth-gke", IMAGE[:2], {}, "the volume claim is missing: give --volume-claim"),
        ("synth-gke", IMAGE, {"output": "runs/x"}, "is not on the shared volume"),
        ("synth-gke", IMAGE, {"output": "/shared/../x"}, "is not on the shared volume"),
        ("synth-gke", IMAGE, {"api_key_env": "KEY"}, "the API key is missing: give --api-key-secret"),
        ("synth-gke", ["--image", "a/b", *IMAGE[2:]], {}, "--image a/b has no tag"),
        ("synth-gke", [*IMAGE, "--memory-per-worker", "8"], {}, "it must be an amount such as 8Gi"),
        ("synth-gke", [*IMAGE, "--namespace", "No"], {}, "--namespace 'No' is not a Kubernetes name"),
    ],
)
def test_refusals(config, capsys, place, options, fields, message):
    assert main(["launch", place, config(**fields), *options, "--dry-run"]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert (captured.out, captured.err.count("\n")) == ("", 1)


def test_arguments_after_the_dashes_are_refused(config, capsys):
    assert main(["launch", "synth-slurm", config(), "--dry-run", "--", "--steps", "1"]) == 2
    assert "arguments after -- are not allowed for plamo2 synth" in capsys.readouterr().err


def test_a_run_folder_on_a_nodes_own_disk_is_warned_of(config, capsys):
    assert main(["launch", "synth-slurm", config(output="/tmp/x"), "--dry-run"]) == 0
    assert "output /tmp/x is on the disk of each node" in capsys.readouterr().err


def commands():
    """The `--dry-run` lines of the page."""
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL))
    return [line for line in blocks.splitlines() if line.startswith("plamo2 launch") and "--dry-run" in line]


def test_every_dry_run_of_the_page_works(tmp_path):
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "synth.yaml").write_text(block, encoding="utf-8")
    assert {line.split()[2] for line in commands()} == {"synth-slurm", "synth-gke"}
    for line in commands():
        words = [sys.executable, "-m", "plamo2_jax.cli.main", *shlex.split(line.partition(" | ")[0])[1:]]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(("#!/usr/bin/env bash\n", "apiVersion: "))
