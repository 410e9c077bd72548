#!/bin/bash
# Train one run on slices of a GKE cluster that xpk made. The image holds this folder as its working directory.
#
#   CLUSTER=mine IMAGE=gcr.io/mine/encoders TPU_TYPE=v5litepod-16 SLICES=2 \
#     experiments/clusters/xpk.sh bert --only bert-large --set mesh.fsdp=16
#
# All arguments are passed to `python launch.py train`. Runs and stores must be on a file system that all hosts share.
# A workload that was preempted starts again and resumes, at most 100 times.
set -euo pipefail
words=$(printf ' %q' "$@")
xpk workload create --cluster="${CLUSTER:?is the name of the cluster}" --workload="${WORKLOAD:-encoders}" \
  --tpu-type="${TPU_TYPE:?is the type of a slice, such as v5litepod-16}" --num-slices="${SLICES:-1}" \
  --docker-image="${IMAGE:?is the image}" --max-restarts=100 \
  --command="python launch.py train$words --coordinator auto"
