#!/usr/bin/env bash
# Measure kernels, scan, train step and decoding on one NVIDIA GPU, in at most 8 minutes. README.md describes the parts.
#
#   experiments/gpu/run.sh [--dry-run] [--wheels DIR] [--output DIR] [--only PART]...
#
#   --dry-run      tiny sizes on the CPU, to test the script
#   --wheels DIR   wheels that the machine lacks (wheels.sh makes them), installed into a temporary folder
#   --output DIR   folder for the results (default runs/gpu)
#   --only PART    run this part only; may be repeated: kernels, scan, mamba_ssm, train_step, decode, train_step_pallas
#
# PYTHON names the interpreter (default python3). A part that fails or reaches its time limit does not stop the others.
set -u
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
python=${PYTHON:-python3}
output=$root/runs/gpu wheels='' dry=() only=()
while (($#)); do
    case $1 in
        --dry-run) dry=(--dry-run) ;;
        --wheels | --output | --only)
            (($# > 1)) || { echo "run.sh: $1 needs a value" >&2; exit 2; }
            case $1 in --wheels) wheels=$2 ;; --output) output=$2 ;; *) only+=("$2") ;; esac
            shift
            ;;
        *) echo "run.sh: unknown option $1. It must be --dry-run, --wheels, --output or --only" >&2; exit 2 ;;
    esac
    shift
done

# All seconds of this script. What is left after the other parts goes to the last one.
budget=465
SECONDS=0
mkdir -p "$output" || exit 1
log=$output/log.txt
: >"$log"
site=$(mktemp -d)
warm_up=''
trap '[ -z "$warm_up" ] || kill "$warm_up" 2>/dev/null; rm -rf "$site"' EXIT
if [ -n "$wheels" ]; then
    "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --target "$site" \
        "$wheels"/*.whl >>"$log" 2>&1 || echo "The wheels in --wheels could not be installed: see log.txt"
fi
# This checkout, whether or not the project is installed. kernels/ is imported as plamo2_kernels.
mkdir "$site/checkout"
ln -s "$root/kernels" "$site/checkout/plamo2_kernels"
export PYTHONPATH=$root/src:$site/checkout:$site${PYTHONPATH:+:$PYTHONPATH}
export PYTHONUNBUFFERED=1
if ((${#dry[@]})); then
    export JAX_PLATFORMS=cpu
else
    # README.md has a table of these flags.
    export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_enable_latency_hiding_scheduler=true --xla_gpu_enable_triton_gemm=false"
    export XLA_PYTHON_CLIENT_MEM_FRACTION=0.92
fi

ended=()
wanted() {
    ((${#only[@]})) || return 0
    local name
    for name in "${only[@]}"; do [ "$name" != "$1" ] || return 0; done
    return 1
}

# part NAME LIMIT SCRIPT OPTION...: run a part for at most LIMIT seconds.
part() {
    local name=$1 limit=$2 script=$3 begun=$SECONDS status
    shift 3
    wanted "$name" || return 0
    rm -f "$output/$name.json"
    ((limit <= budget - SECONDS)) || limit=$((budget - SECONDS))
    if ((limit < 15)); then
        echo "$name: not started, because the 8 minutes are over" | tee -a "$log"
        return 0
    fi
    echo "== $name" >>"$log"
    timeout --kill-after=5 "$limit" "$python" "$here/$script" --output "$output/$name.json" "${dry[@]}" "$@" >>"$log" 2>&1
    status=$?
    ended+=(--ended "$name=$status:$((SECONDS - begun))")
    echo "$name: status $status after $((SECONDS - begun)) s" | tee -a "$log"
}

# Triton compiles about a hundred variants of the kernels of mamba_ssm. It does this while the kernels are checked, which measures no time.
if ((!${#dry[@]})) && wanted mamba_ssm && wanted kernels; then
    timeout 85 "$python" "$here/mamba_ssm_scan.py" --warm-up --output "$site/warm_up.json" >>"$log" 2>&1 &
    warm_up=$!
fi
XLA_PYTHON_CLIENT_PREALLOCATE=false part kernels 90 kernels.py
if [ -n "$warm_up" ]; then
    wait "$warm_up"
    warm_up=''
fi
part scan 75 scan.py
part mamba_ssm 60 mamba_ssm_scan.py
part train_step 95 train_step.py
part decode 100 decode.py
part train_step_pallas 95 train_step.py --implementation pallas_gpu
"$python" "$here/summarize.py" --parts "$output" "${ended[@]}"
