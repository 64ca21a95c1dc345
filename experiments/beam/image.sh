#!/usr/bin/env bash
# Build the container image of Beam workers, and push it: image.sh REGISTRY/NAME:TAG
set -euo pipefail
image=${1:?usage: image.sh REGISTRY/NAME:TAG}
root=$(cd "$(dirname "$0")/../.." && pwd)
context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
python3 -m pip wheel --quiet --no-deps --wheel-dir "$context" "$root"
docker build --tag "$image" --file "$root/experiments/beam/Dockerfile" "$context"
docker push "$image"
