#!/usr/bin/env bash
# A job on a GKE cluster with TPU slices, by xpk (https://github.com/AI-Hypercomputer/xpk).
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'TEXT'
usage: CLUSTER=c PROJECT=p ZONE=z IMAGE=i tpu/gke.sh [--dry-run] COMMAND [ARGUMENTS]

  image             builds tpu/Dockerfile and pushes it as IMAGE
  create            makes the cluster (TYPE=v5litepod-16, SLICES=1, SPOT=1)
  train ARGUMENTS   starts python -m jopd.train ARGUMENTS on all hosts (WORKLOAD=jopd), restarted
                    after a preemption up to RESTARTS=100 times
  delete            ends the job
TEXT
}

begin "$@"
for setting in CLUSTER PROJECT ZONE IMAGE; do
  need "$setting"
done
place=(--cluster "$CLUSTER" --project "$PROJECT" --zone "$ZONE")
kind=(--tpu-type "${TYPE:-v5litepod-16}" --num-slices "${SLICES:-1}")

case $command in
  image)
    run docker build --file "$(dirname "${BASH_SOURCE[0]}")/Dockerfile" --tag "$IMAGE" .
    run docker push "$IMAGE"
    ;;
  create)
    spot=()
    if [ -n "${SPOT:-}" ]; then spot=(--spot); fi
    run xpk cluster create "${place[@]}" "${kind[@]}" "${spot[@]}"
    ;;
  train)
    run xpk workload create "${place[@]}" "${kind[@]}" --workload "${WORKLOAD:-jopd}" \
      --docker-image "$IMAGE" --max-restarts "${RESTARTS:-100}" \
      --command "python -m jopd.train ${arguments[*]}"
    ;;
  delete)
    run xpk workload delete "${place[@]}" --workload "${WORKLOAD:-jopd}"
    ;;
  *)
    usage >&2
    exit 2
    ;;
esac
