#!/usr/bin/env bash
# Make the wheels for run.sh --wheels, for Python 3.12 on x86-64: about 7 MB.
#
#   experiments/gpu/wheels.sh DIR
#
# PYTHON names an interpreter with torch, setuptools, wheel, packaging and ninja (any build of torch: the setup of mamba_ssm imports it).
set -euo pipefail
target=${1:?wheels.sh needs the folder for the wheels}
python=${PYTHON:-python3}
pip() { "$python" -m pip --disable-pip-version-check "$@"; }
platforms=()
for version in 17 24 27 28; do platforms+=(--platform "manylinux_2_${version}_x86_64"); done
pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp "${platforms[@]}" \
    --platform manylinux2014_x86_64 --dest "$target" \
    flax==0.12.12 optax==0.2.8 orbax-checkpoint==0.12.8 grain==0.2.18 array-record==0.8.6 tyro==1.0.17 docstring-parser==0.18.0 \
    typeguard==4.6.1
# Without its CUDA extension, which the scan does not use, mamba_ssm is a wheel of Python files.
MAMBA_FORCE_BUILD=TRUE MAMBA_SKIP_CUDA_BUILD=TRUE pip wheel --quiet --no-deps --no-build-isolation \
    --no-binary mamba-ssm --wheel-dir "$target" mamba-ssm==2.3.2.post1
