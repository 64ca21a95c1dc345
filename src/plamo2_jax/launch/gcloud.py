"""Train on a queued TPU resource of Google Cloud, and restart after each preemption.

The launcher is one bash script that needs only gcloud and git. --dry-run prints this script.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import tyro

from plamo2_jax.errors import PlamoError
from plamo2_jax.launch.archive import archive, require_reachable
from plamo2_jax.launch.checks import project_and_zone, require_account, require_tool, resource_name
from plamo2_jax.launch.job import AUTO, REFUSED, TERMINATED, Job, wrapped
from plamo2_jax.launch.setup import setup_lines
from plamo2_jax.launch.slices import parse_slice
from plamo2_jax.validation import require_at_least

UV = "uv==0.13.9"
"""Package installer on the workers. The version is pinned, so that it does not change between two attempts of a run."""


@dataclasses.dataclass(frozen=True)
class Gcloud:
    """Train on a TPU slice, and restart after preemptions. Needs the gcloud CLI with an account, a project and a zone."""

    accelerator: str
    """TPU slice: an accelerator type such as v5litepod-16, v5p-128 or v6e-256, or generation and shape such as v5p:4x4x4."""
    project: str | None = None
    """Google Cloud project. Default: CLOUDSDK_CORE_PROJECT or gcloud's property core/project."""
    zone: str | None = None
    """Zone. Default: CLOUDSDK_COMPUTE_ZONE or gcloud's property compute/zone."""
    spot: bool = False
    """Use spare capacity, which is cheaper and may be preempted at any time. The script then requests the resource again and resumes."""
    job_name: str | None = None
    """Name of the queued resource and of its node. Default: the run's name."""
    runtime_version: str | None = None
    """Software version of the TPU VMs. Default: the version for the TPU generation."""
    create_flag: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Further flag of `gcloud compute tpus queued-resources create`, as in --create-flag=--reserved; may be given several times."""
    source: Path = Path(".")
    """Git checkout of the project that contains the config file. The launcher copies the files that git tracks, with your uncommitted
    changes, to the workers."""
    max_archive_mb: int = 100
    """Largest size of the files that are copied to each worker, in MB before compression."""
    on_workers: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """File or folder that the run reads and that exists on the workers: on a shared disk, or copied by --setup. May be given several
    times."""
    python: str = "3.12"
    """Python version on the workers. Python 3.10 of the TPU image is too old for JAX."""
    setup: str = ""
    """Shell command that every worker runs in its checkout after the installation, for example to copy data. Join several commands with &&.
    If it fails, the launch ends."""
    attempts: int = 100
    """Maximum number of training attempts, and of resource requests."""
    poll: int = 30
    """Time between two queries of the resource's state, in seconds."""
    cleanup: Literal["success", "always", "never"] = "success"
    """When to delete the queued resource at the end. A resource that is kept costs money."""


def script(job: Job, options: Gcloud) -> str:
    """Return the bash script that trains on a slice.

    Raises:
        PlamoError: Project or zone is missing, there is no such slice, the config file is outside the checkout, the archive is too
            large, or the workers will not have a file that the run reads.
    """
    require_at_least(1, attempts=options.attempts, poll=options.poll, max_archive_mb=options.max_archive_mb)
    chosen = parse_slice(options.accelerator)
    runtime = options.runtime_version or chosen.generation.runtime
    if runtime is None:
        raise PlamoError(f"--accelerator {options.accelerator} is available only in GKE. Use plamo2 launch xpk")
    name = resource_name(options.job_name, job.name, 61)
    project, zone = project_and_zone(options.project, options.zone)
    source = options.source.resolve()
    if not (source / ".git").exists() or not (source / "setup.cfg").exists():
        raise PlamoError(
            f"--source {options.source} is not a git checkout of plamo2-jax. Give the folder of a checkout"
        )
    config = job.config.resolve()
    if not config.is_relative_to(source):
        raise PlamoError(
            f"{job.config} is outside --source {options.source} and would not be copied to the workers. Move it there"
        )
    copied = archive(source, config)
    copied.require_at_most(options.max_archive_mb)
    require_reachable(job.inputs, copied, options.on_workers)
    folder = f"plamo2/{name}"  # On a worker, in its home folder.
    command = job.command((".venv/bin/plamo2",), *AUTO, config=config.relative_to(source))
    values = {
        "name": name,
        "project": project,
        "zone": zone,
        "source": str(source),
        "config": copied.config,
        "archive": f"{name}.tar.gz",
        "install": _INSTALL.format(folder=folder, archive=f"{name}.tar.gz", python=shlex.quote(options.python), uv=UV)
        + setup_lines(options.setup),
        "train": _TRAIN.format(folder=folder, stop=_STOP, command=wrapped(command)),
        "stop": f"cd {folder} || exit 1\n{_STOP}",
        "cleanup": options.cleanup,
    }
    flags = [f"--accelerator-type={chosen.accelerator}", f"--runtime-version={runtime}", f"--node-id={name}"]
    flags += ["--spot"] * options.spot + list(options.create_flag)
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            "# shellcheck disable=SC2016,SC2329  # Text in single quotes is expanded on the workers; traps call `stop`.",
            f"# Trains {name} on {chosen.accelerator}, {chosen.chips} chips of shape {chosen.shape}.",
            *(f"# {line}" for line in copied.summary()),
            "set -uo pipefail",
            "",
            *(f"{key}={shlex.quote(value)}" for key, value in values.items()),
            f"create=({shlex.join(flags)})",
            f"attempts={options.attempts}",
            f"poll={options.poll}",
            f"limit={options.max_archive_mb}",
            _BODY.format(refused=REFUSED, terminated=TERMINATED),
        ]
    )


def launch(job: Job, options: Gcloud) -> NoReturn:
    """Replace this process by the script.

    Raises:
        PlamoError: A program, an account or a value is missing.
    """
    require_tool("gcloud")
    text = script(job, options)
    require_account()
    summary = archive(options.source.resolve(), job.config.resolve()).summary()
    print("\n".join(f"launch: {line}" for line in summary), file=sys.stderr)
    # The script then gets the signals of this process, and its exit status is the exit status of this process.
    os.execvp("bash", ["bash", "-c", text])


# Runs on every worker before each attempt: installs the project and a Python that is new enough.
_INSTALL = """set -e
mkdir -p {folder}
tar -xzf {archive} -C {folder}
cd {folder}
PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user {uv}
[ -x .venv/bin/python ] || "$HOME/.local/bin/uv" venv --quiet --python {python} .venv
"$HOME/.local/bin/uv" pip install --quiet --python .venv/bin/python --constraint constraints.txt --editable '.[tpu]'
set +e
"""

# Stop a run that still exists after a lost connection or Ctrl-C, and wait for it. The pattern besides the PID file protects an unrelated
# process that may have the same number now.
_STOP = """pkill -TERM -F run.pid -f 'plamo2 pretrain' 2>/dev/null
for _ in $(seq 300); do pgrep -F run.pid -f 'plamo2 pretrain' >/dev/null 2>&1 || break; sleep 1; done"""

_TRAIN = """cd {folder} || exit 1
{stop}
echo $$ >run.pid
exec {command}"""

_BODY = """
say() {{ printf 'launch: %s\\n' "$*" >&2; }}

resource() {{ # VERB [FLAG...]
  local verb=$1
  shift
  gcloud compute tpus queued-resources "$verb" "$name" --project="$project" --zone="$zone" "$@" --quiet
}}

on_workers() {{ # COMMAND; the exit status is that of the first worker that failed
  gcloud compute tpus tpu-vm ssh "$name" --project="$project" --zone="$zone" --worker=all --quiet --command="$1"
}}

state() {{ # Prints the resource's state: also ABSENT, and UNKNOWN when gcloud could not tell.
  local answer
  if answer=$(resource describe --format='value(state.state)' 2>&1); then
    echo "${{answer##*$'\\n'}}"
  elif [[ $answer == *NOT_FOUND* ]]; then
    echo ABSENT
  else
    say "$answer"
    echo UNKNOWN
  fi
}}

made=0
acquire() {{ # Returns when the resource is ACTIVE. Creates it, also after a preemption.
  local now unknown=0
  while true; do
    now=$(state)
    case $now in
    ACTIVE) return 0 ;;
    ABSENT)
      if ((++made > attempts)); then
        say "gave up: the resource was created $attempts times"
        return 1
      fi
      resource create "${{create[@]}}" || return 1
      ;;
    FAILED | SUSPENDED)
      say "$name is $now; it is deleted and created again"
      resource delete --force || return 1
      continue
      ;;
    UNKNOWN)
      if ((++unknown >= 10)); then
        say "gave up: the state of $name cannot be read"
        return 1
      fi
      ;;
    *) say "waiting: $name is $now" ;;
    esac
    sleep "$poll"
  done
}}

pack() {{ # Called once, so that every attempt runs the same files. git only lists names and writes nothing into .git.
  local size
  (
    cd "$source" || exit 1
    {{
      git ls-files -z --cached || exit 1
      git --literal-pathspecs ls-files --error-unmatch -- "$config" >/dev/null 2>&1 || printf '%s\\0' "$config"
    }} | while IFS= read -r -d '' file; do # A tracked file may have been deleted.
      [[ ! -e $file && ! -L $file ]] || printf '%s\\0' "$file"
    done | COPYFILE_DISABLE=1 tar --create --no-recursion --null --files-from=- --file="$folder/files.tar"
  ) && size=$(wc -c <"$folder/files.tar") || return 1
  if ((size > limit * 1000000)); then
    say "the files to copy have $((size)) bytes: the limit is $limit MB (--max-archive-mb)"
    return {refused}
  fi
  gzip -c "$folder/files.tar" >"$folder/$archive" && rm "$folder/files.tar"
}}

install_on_workers() {{
  gcloud compute tpus tpu-vm scp "$folder/$archive" "$name:$archive" --project="$project" --zone="$zone" --worker=all --quiet &&
    on_workers "$install"
}}

finish() {{ # STATUS
  if [[ $cleanup == always || ($cleanup == success && $1 == 0) ]]; then
    resource delete --force
  else
    say "$name may still exist and cost money. To delete it, run:"
    say "gcloud compute tpus queued-resources delete $name --project=$project --zone=$zone --force"
  fi
  exit "$1"
}}

stop() {{ # STATUS: Ctrl-C or SIGTERM here. Processes on the workers would outlive the connection.
  trap '' INT TERM
  say "asking the run on the workers to save a checkpoint and stop"
  on_workers "$stop"
  wait
  finish "$1"
}}
trap 'stop 130' INT
trap 'stop 143' TERM

folder=$(mktemp -d) || exit 1
trap 'rm -rf "$folder"' EXIT
pack || exit

status=1
for ((attempt = 1; attempt <= attempts; attempt++)); do
  acquire || finish 1
  say "$name is ACTIVE; attempt $attempt of $attempts"
  if install_on_workers; then
    # In the background, because bash handles signals while it waits, but not while a command runs. It ignores Ctrl-C to show further
    # output.
    (trap '' INT && on_workers "$train") &
    wait $!
    status=$?
  else
    status=1
  fi
  case $status in
  0 | {refused}) finish $status ;; # done; or the configuration is wrong, and would be again
  {terminated} | 255) ;; # stopped by SIGTERM with a checkpoint; the connection was lost
  *) # A failure of the run, unless the slice is gone: then workers end with any status.
    sleep "$poll"
    [[ $(state) != ACTIVE ]] || finish $status
    ;;
  esac
  say "ended with status $status; the run resumes from the newest checkpoint"
  sleep "$poll"
done
say "gave up after $attempts attempts"
finish $status
"""
