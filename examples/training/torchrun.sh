#!/bin/sh
# One node: every card of it. Usage: torchrun.sh OUTPUT DATA CONFIG.yaml ... [-- further options of `kaleido train`]
#   torchrun.sh runs/video s3://bucket/clips large.yaml stage-1-video.yaml
# The same command goes on after a stop; another number of cards may.
set -eu
output=$1 data=$2
shift 2
configs=
while [ $# -gt 0 ] && [ "$1" != "--" ]; do configs="$configs $1"; shift; done
[ $# -eq 0 ] || shift
# shellcheck disable=SC2086
exec torchrun --standalone --nproc-per-node "${CARDS:-gpu}" -m kaleido_diffusers.cli train \
    --config $configs --output "$output" --data "$data" "$@"
