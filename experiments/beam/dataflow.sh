#!/usr/bin/env bash
# Clean and deduplicate gs://BUCKET/input/*.jsonl.gz on Dataflow: dataflow.sh PROJECT REGION BUCKET IMAGE
set -euo pipefail
usage='usage: dataflow.sh PROJECT REGION BUCKET IMAGE'
project=${1:?$usage} region=${2:?$usage} bucket=${3:?$usage} image=${4:?$usage}
plamo2 data beam --input "gs://$bucket/input/*.jsonl.gz" --output "gs://$bucket/output" --stages clean deduplicate \
    --runner dataflow --beam-options "project=$project" "region=$region" "temp_location=gs://$bucket/temporary" \
    "sdk_container_image=$image"
