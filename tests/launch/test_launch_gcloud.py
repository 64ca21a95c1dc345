"""The script for a queued TPU resource, run against a stand-in for gcloud whose worker is a folder here.

The service cannot be reached from a test. The stand-in answers `describe` from a list of states, copies files and runs the commands for
workers in a shell in the worker's home; plamo2 there ends with statuses from a list. Every call is recorded.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from plamo2_jax.launch.job import AUTO
from support.scripts import AWKWARD, check_bash

WHERE = ("--project", "my-project", "--zone", "us-east5-a")
DATA = ("--on-workers", "runs/demo")
SLICE = ("--accelerator", "v5p-128", *WHERE, *DATA)

GCLOUD = r"""#!/usr/bin/env bash
# Stand-in for gcloud: state in $STUB.
case $* in
"config get-value"*) exit 0 ;;
"auth list"*) echo "${ACCOUNT-someone@example.com}"; exit 0 ;;
esac
printf '%s\n' "$4 ${5%%=*}" >>"$STUB/calls"
next() { # FILE: takes the first line away, unless it is the last.
  head -n 1 "$1"
  [[ $(wc -l <"$1") -lt 2 ]] || sed -i 1d "$1"
}
case $4 in
describe)
  state=$(next "$STUB/states")
  [[ $state != ABSENT ]] || { echo "ERROR: NOT_FOUND: Resource was not found" >&2; exit 1; }
  [[ $state != BROKEN ]] || { echo "ERROR: no network" >&2; exit 1; }
  echo "$state"
  ;;
create) printf '%s\n' "$@" >"$STUB/create"; exit "${CREATE_STATUS-0}" ;;
scp) cp "$5" "$STUB/home/${6#*:}" ;;
ssh)
  command=${!#}
  cd "$STUB/home" && HOME=$STUB/home exec bash -c "${command#--command=}"
  ;;
esac
"""

UV = r"""#!/usr/bin/env bash
case $1 in
venv) mkdir -p .venv/bin; ln -sf /bin/true .venv/bin/python ;;
pip)
  cat >.venv/bin/plamo2 <<'END'
#!/usr/bin/env bash
trap 'echo saved >>"$STUB/calls"; exit 143' TERM
printf '%s\0' "$@" >"$STUB/arguments"
echo pretrain >>"$STUB/calls"
status=$(head -n 1 "$STUB/statuses")
sed -i 1d "$STUB/statuses"
while [[ $status == forever ]]; do sleep 0.1; done
exit "$status"
END
  chmod +x .venv/bin/plamo2
  ;;
esac
"""


@pytest.fixture
def cloud(checkout, tmp_path, monkeypatch):
    """Runs `plamo2 launch gcloud` against the stand-in; returns a started process. `.calls()` lists what was asked for."""

    class Cloud:
        folder = tmp_path / "stub"

        def start(self, states, statuses, *options, overrides=(), **environment):
            for name, lines in (("states", states), ("statuses", statuses)):
                (self.folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            command = [sys.executable, "-m", "plamo2_jax.cli.main", "launch", "gcloud", "configs/demo.py", *SLICE]
            return subprocess.Popen(
                [*command, "--poll", "1", "--spot", *options, "--", "--output", "gs://bucket/runs", *overrides],
                env=os.environ | environment,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )

        def run(self, *arguments, **environment):
            process = self.start(*arguments, **environment)
            _, self.messages = process.communicate(timeout=300)
            return process.returncode

        def calls(self):
            """The calls in order; without `describe`, of which there are as many as it took."""
            lines = (self.folder / "calls").read_text(encoding="utf-8").splitlines()
            return [line.split()[0] for line in lines if not line.startswith("describe")]

    tools = tmp_path / "bin"
    home = Cloud.folder / "home"
    # The script waits for whole seconds; `sleep` shortens them.
    sleep = f"#!/bin/sh\nexec {shutil.which('sleep')} 0.05\n"
    scripts = {"gcloud": GCLOUD, "python3": "#!/bin/sh\n", "sleep": sleep}
    for path, body in {**{tools / name: text for name, text in scripts.items()}, home / ".local/bin/uv": UV}.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(body, encoding="utf-8")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("STUB", str(Cloud.folder))
    return Cloud()


TRAIN = ["scp", "ssh", "ssh", "pretrain"]  # copy, install, train


def test_the_resource_is_made_trained_on_and_deleted(cloud, checkout):
    assert cloud.run(["ABSENT", "WAITING_FOR_RESOURCES", "ACTIVE"], [0], "--job-name", "demo", overrides=AWKWARD) == 0
    assert cloud.calls() == ["create", *TRAIN, "delete"]
    created = (cloud.folder / "create").read_text(encoding="utf-8").split()
    assert created[:5] == ["compute", "tpus", "queued-resources", "create", "demo"]
    assert {"--accelerator-type=v5p-128", "--runtime-version=v2-alpha-tpuv5", "--spot", "--project=my-project"} <= set(
        created
    )
    arguments = (cloud.folder / "arguments").read_bytes().decode().rstrip("\0").split("\0")
    assert arguments == ["pretrain", "configs/demo.py", "--output", "gs://bucket/runs", *AWKWARD, *AUTO]


def test_a_preempted_resource_is_made_anew_and_the_same_command_runs_again(cloud):
    states = ["ACTIVE", "SUSPENDING", "SUSPENDED", "ABSENT", "PROVISIONING", "ACTIVE"]
    assert cloud.run(states, [143, 0]) == 0
    assert cloud.calls() == [*TRAIN, "delete", "create", *TRAIN, "delete"]
    assert "demo is SUSPENDED; it is deleted and created again" in cloud.messages


def test_a_resource_that_failed_is_made_anew(cloud):
    assert cloud.run(["FAILED", "ABSENT", "ACTIVE"], [0]) == 0
    assert cloud.calls() == ["delete", "create", *TRAIN, "delete"]


@pytest.mark.parametrize("status", [143, 255])
def test_a_stopped_run_and_a_lost_connection_are_tried_again_where_the_resource_stays(cloud, status):
    assert cloud.run(["ACTIVE"], [status, 0]) == 0
    assert cloud.calls() == [*TRAIN, *TRAIN, "delete"]


def test_a_wrong_configuration_is_not_tried_again_and_the_resource_kept(cloud):
    assert cloud.run(["ACTIVE"], [2]) == 2
    assert cloud.calls() == TRAIN
    assert "gcloud compute tpus queued-resources delete demo --project=my-project" in cloud.messages


def test_a_failure_is_not_tried_again_unless_the_resource_went_away_with_it(cloud):
    assert cloud.run(["ACTIVE"], [1]) == 1
    assert cloud.calls() == TRAIN
    (cloud.folder / "calls").unlink()
    assert cloud.run(["ACTIVE", "SUSPENDING", "SUSPENDED", "ABSENT", "ACTIVE"], [134, 0]) == 0
    assert cloud.calls() == [*TRAIN, "delete", "create", *TRAIN, "delete"]


def test_it_gives_up_after_so_many_attempts(cloud):
    assert cloud.run(["ACTIVE"], [143, 143, 143], "--attempts", "2", "--cleanup", "always") == 143
    assert cloud.calls() == [*TRAIN, *TRAIN, "delete"]


def test_a_resource_that_cannot_be_made_ends_it(cloud):
    assert cloud.run(["ABSENT"], [0], CREATE_STATUS="1") == 1
    assert cloud.calls() == ["create"]


def test_a_state_that_cannot_be_read_is_asked_for_ten_times(cloud, printed):
    for name in ("states", "statuses"):
        (cloud.folder / name).write_text("BROKEN\n", encoding="utf-8")
    text = printed("gcloud", *SLICE).replace("poll=30", "poll=0.01")
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("launch: ERROR: no network") == 10
    assert cloud.calls() == []


def test_data_are_brought_before_each_run(cloud):
    # As activation scripts do: a variable that may not be set, and a command that may fail.
    setup = "old=$PS1; false; false | true; mkdir -p data && echo 'it is' >data/here"
    assert cloud.run(["ACTIVE"], [0], "--setup", setup) == 0
    assert (cloud.folder / "home/plamo2/demo/data/here").read_text(encoding="utf-8") == "it is\n"
    assert "launch: copied to each worker: 3 files that git tracks" in cloud.messages
    assert cloud.run(["ACTIVE"], [], "--setup", "true\nfalse") == 1
    assert "launch: the setup command failed with status 1; nothing was started" in cloud.messages
    assert cloud.calls() == [*TRAIN, "delete", "scp", "ssh"]


def test_ctrl_c_stops_the_workers_with_a_checkpoint(cloud):
    process = cloud.start(["ACTIVE"], ["forever"])
    deadline = time.monotonic() + 300
    while not (cloud.folder / "calls").exists() or "pretrain" not in cloud.calls():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, messages = process.communicate(timeout=300)
    assert process.returncode == 130
    assert cloud.calls() == [*TRAIN, "ssh", "saved"]
    assert "save a checkpoint" in messages


def test_the_script_passes_bash_and_shellcheck(printed):
    check_bash(
        printed("gcloud", *SLICE, "--spot", "--job-name", "x", "--create-flag=--labels=a=b c", overrides=AWKWARD)
    )


def test_gcloud_knows_the_commands(printed):
    """The installed gcloud judges the flags of every call, without reaching for the service."""
    if shutil.which("gcloud") is None:
        pytest.skip("gcloud is not installed")
    text = printed("gcloud", *SLICE, "--spot")
    # The script's own functions, with gcloud printing what it is called with, once for each thing asked of it.
    head = text[: text.index("made=0")]
    calls = 'gcloud() { printf "gcloud"; printf " %q" "$@"; echo; }\n' + (
        'resource describe --format="value(state.state)"; resource create "${create[@]}"; resource delete --force\n'
        'on_workers "$train"; on_workers "$install"; on_workers "$stop"\n'
    )
    scp = next(line.strip().removesuffix(" &&") for line in text.splitlines() if "tpu-vm scp" in line)
    done = subprocess.run(
        ["bash", "-c", f"{head}{calls}folder=/tmp\n{scp}"], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 7
    for line in lines:
        words = [word if "\n" not in word else "--command=x" for word in eval_words(line)]
        judged = subprocess.run(
            ["gcloud", "meta", "lint-gcloud-commands", f"--command-string={shlex.join(words)}"],
            capture_output=True,
            text=True,
        )
        (answer,) = json.loads(judged.stdout)
        assert answer["success"], answer["error_message"]


def eval_words(line):
    """The words of a line that bash quoted."""
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True)
    return done.stdout.rstrip("\0").split("\0")


def test_an_output_on_the_workers_own_disks_is_warned_of(checkout, capsys):
    from plamo2_jax.cli.main import main

    for arguments in (SLICE, ("--accelerator", "v5p-8", "--spot", *WHERE, *DATA)):
        assert main(["launch", "gcloud", "configs/demo.py", *arguments, "--dry-run"]) == 0
        captured = capsys.readouterr()
        assert captured.err.startswith("plamo2 launch: warning: output runs is on the disk of a TPU VM")
        assert captured.out.startswith("#!/usr/bin/env bash\n")


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (("--accelerator", "v5p-8"), ["project is missing: give --project", "zone is missing: give --zone"]),
        (
            ("--accelerator", "v5p-8", "--project", "my-project"),
            ["the zone is missing: give --zone, CLOUDSDK_COMPUTE_ZONE"],
        ),
        (("--accelerator", "v5p-8", "--project", "A", "--zone", "us-east5-a"), ["--project 'A' is not a project id"]),
        (
            ("--accelerator", "v5p-8", "--project", "my-project", "--zone", "us east"),
            ["--zone 'us east' is not a zone"],
        ),
        ((*SLICE, "--job-name", "x y"), ["--job-name 'x y' is not allowed"]),
        ((*SLICE, "--poll", "0"), ["--poll 0 is not allowed"]),
        ((*SLICE, "--source", "configs"), ["--source configs is not a git checkout of plamo2-jax"]),
        (("--accelerator", "tpu7x-8", *WHERE), ["only in GKE. Use plamo2 launch xpk"]),
    ],
)
def test_refusals_name_what_is_missing(refused, arguments, messages):
    said = refused("gcloud", *arguments)
    assert all(message in said for message in messages), said


def test_an_environment_variable_gives_the_project(printed, monkeypatch):
    monkeypatch.setenv("CLOUDSDK_CORE_PROJECT", "from-environment")
    text = printed("gcloud", "--accelerator", "v5p-8", "--zone", "us-east5-a", *DATA)
    assert "\nproject=from-environment\n" in text


def test_a_missing_account_is_named(cloud):
    assert cloud.run(["ACTIVE"], [0], ACCOUNT="") == 2
    assert "gcloud has no active account. Run `gcloud auth login`" in cloud.messages
    assert not (cloud.folder / "calls").exists()


def test_a_missing_git_is_named(refused, monkeypatch, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gcloud").symlink_to("/bin/true")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert "git is not on PATH: install git" in refused("gcloud", *SLICE)


def test_a_missing_gcloud_is_named(refused, monkeypatch, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "git").symlink_to(shutil.which("git"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert "gcloud is not on PATH: install the Google Cloud CLI" in refused(
        "gcloud", *SLICE, overrides=("--output", "gs://bucket/runs")
    )


def test_a_config_file_outside_the_checkout_would_not_be_there(checkout, tmp_path, capsys):
    from plamo2_jax.cli.main import main

    shutil.copy(Path("configs/demo.py"), tmp_path / "elsewhere.py")
    assert main(["launch", "gcloud", str(tmp_path / "elsewhere.py"), *SLICE, "--dry-run"]) == 2
    assert "is outside --source" in capsys.readouterr().err
