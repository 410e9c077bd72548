#!/bin/bash
# Train one run on all hosts of a TPU slice, one process a host. The slice exists, with this folder on every host.
#
#   TPU=my-slice ZONE=us-west4-a experiments/clusters/tpu_pod.sh bert --only bert-large --set mesh.fsdp=16
#
# All arguments are passed to `python launch.py train`. Runs and stores must be on a file system that all hosts share.
set -uo pipefail
words=$(printf ' %q' "$@")
while :; do
  gcloud compute tpus tpu-vm ssh "${TPU:?is the name of the slice}" --zone="${ZONE:?is its zone}" --worker=all \
    --command="cd ${FOLDER:-encoders} && python launch.py train$words --coordinator auto"
  status=$?
  [ $status -eq 75 ] || exit $status # 75: stopped after saving a checkpoint, with steps left
done
