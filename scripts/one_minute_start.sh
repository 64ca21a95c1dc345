#!/bin/sh
# Time the first minute of a new user: build the wheel, install it into an empty virtual environment, `plamo2 init`, `plamo2 quickstart`.
#
#   scripts/one_minute_start.sh [PYTHON]        (python3 by default; needs a package index for the installation)
#
# VENV=FOLDER installs only the wheel into an environment whose dependencies are installed already; the seconds of the installation then do
# not count. The log, experiments/quickstart/log.json, has the seconds of each step, the machine and the versions.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
python=${1:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

now() { "$python" -c 'import time; print(time.monotonic())'; }
steps=
# step NAME COMMAND...: run a command and record its seconds.
step() {
    name=$1
    shift
    begun=$(now)
    "$@" >"$work/$name.txt" 2>&1 </dev/null || { cat "$work/$name.txt" >&2; echo "one_minute_start: $name failed" >&2; exit 1; }
    steps="$steps $name=$("$python" -c "print(round($(now) - $begun, 1))")"
    echo "$name: ${steps##*=} s"
}

# A copy, since building leaves files behind that the next build would take for sources.
mkdir "$work/source"
cp "$root/setup.cfg" "$root/pyproject.toml" "$root/README.md" "$root/LICENSE" "$root/constraints.txt" "$work/source"
cp -R "$root/src" "$root/kernels" "$root/configs" "$work/source"

venv=${VENV:-$work/venv}
fresh=false
[ -n "${VENV:-}" ] || { fresh=true; step venv "$python" -m venv "$venv"; }
step wheel "$venv/bin/python" -m pip --disable-pip-version-check wheel --quiet --no-deps --wheel-dir "$work" "$work/source"
if $fresh; then
    step install "$venv/bin/python" -m pip --disable-pip-version-check install --quiet --constraint "$work/source/constraints.txt" "$work"/*.whl
else
    step install "$venv/bin/python" -m pip --disable-pip-version-check install --quiet --no-deps --force-reinstall "$work"/*.whl
fi

# A new user has no compiled programs.
export XDG_CACHE_HOME="$work/cache"
unset PYTHONPATH
mkdir "$work/user"
cd "$work/user"
step init "$venv/bin/plamo2" init my-model
step quickstart "$venv/bin/plamo2" quickstart
step again "$venv/bin/plamo2" quickstart

# shellcheck disable=SC2086 # The steps are words.
"$venv/bin/python" - "$root/experiments/quickstart/log.json" "$work/quickstart.txt" $fresh $steps <<'PYTHON'
import json
import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path

output, printed, fresh, *steps = sys.argv[1:]
text = Path(printed).read_text(encoding="utf-8")
model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if os.path.exists("/proc/cpuinfo") else None
log = {
    "command": "scripts/one_minute_start.sh",
    "seconds": {name: float(value) for name, value in (step.split("=") for step in steps)},
    "installed_into_an_empty_environment": fresh == "true",
    "quickstart_stages_seconds": {name: float(value) for name, value in re.findall(r"\] (\w+): done in ([\d.]+) s", text)},
    "compile_seconds": float(re.search(r"compiled in ([\d.]+) s", text)[1]),
    "ready_after_seconds": float(re.search(r"is ready after (\d+) s", text)[1]),
    "answers": re.findall(r"^\[[12]/2\] (.*)\n(.*)$", text, re.MULTILINE),
    "machine": {"cpu": model[1] if model else platform.processor(), "cores": os.cpu_count(), "system": platform.system()},
    # Far above 1 if other programs ran on the machine: the seconds are then too large.
    "load_average_of_15_minutes_at_the_end": round(os.getloadavg()[2], 1),
    "versions": {name: metadata.version(name) for name in ("plamo2-jax", "jax", "flax", "numpy")} | {"python": platform.python_version()},
}
Path(output).write_text(json.dumps(log, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
print(json.dumps(log["seconds"]))
PYTHON
