#!/usr/bin/env bash
# Clean and deduplicate files on a Flink cluster whose workers run a container image: flink.sh HOST:PORT IMAGE INPUT OUTPUT
set -euo pipefail
usage='usage: flink.sh HOST:PORT IMAGE INPUT OUTPUT'
master=${1:?$usage} image=${2:?$usage} input=${3:?$usage} output=${4:?$usage}
plamo2 data beam --input "$input" --output "$output" --stages clean deduplicate \
    --runner flink --beam-options "flink_master=$master" environment_type=DOCKER "environment_config=$image"
