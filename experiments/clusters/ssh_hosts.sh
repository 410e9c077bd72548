#!/bin/bash
# Train one run on several machines that ssh reaches, one process each. The first one coordinates.
#
#   HOSTS="gpu-0 gpu-1" experiments/clusters/ssh_hosts.sh bert --only bert-large --set mesh.fsdp=8
#
# All arguments are passed to `python launch.py train`. Runs and stores must be on a file system that all share.
set -uo pipefail
read -ra hosts <<<"${HOSTS:?are the names of the machines}"
words=$(printf ' %q' "$@")
processes=()
for i in "${!hosts[@]}"; do
  ssh "${hosts[$i]}" "cd ${FOLDER:-encoders} && python launch.py train$words" \
    "--coordinator ${hosts[0]}:${PORT:-8476} --processes ${#hosts[@]} --process $i" &
  processes+=($!)
done
status=0
for process in "${processes[@]}"; do
  wait "$process" || status=$?
done
exit $status
