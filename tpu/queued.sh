#!/usr/bin/env bash
# A Cloud TPU slice by a queued resource, from nothing to a running job.
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'TEXT'
usage: NAME=my-tpu PROJECT=p ZONE=us-west4-a BUCKET=gs://b tpu/queued.sh [--dry-run] COMMAND [ARGUMENTS]

  create            asks for the slice and waits for it (TYPE=v5litepod-8, VERSION=v2-alpha-tpuv5-lite,
                    SPOT=1 for a spot slice)
  setup             installs jopd on every host (REF=main of REPOSITORY)
  train ARGUMENTS   python -m jopd.train ARGUMENTS on every host, in a loop that goes on after a stop
  logs              follows the first host's output
  delete            gives the slice back

The compilation cache lies in BUCKET, so a host that comes anew does not compile again.
TEXT
}

begin "$@"
for setting in NAME PROJECT ZONE; do
  need "$setting"
done
place=(--project "$PROJECT" --zone "$ZONE")
everywhere() {
  run gcloud compute tpus tpu-vm ssh "$NAME" "${place[@]}" --worker=all --command "$1"
}

case $command in
  create)
    spot=()
    if [ -n "${SPOT:-}" ]; then spot=(--spot); fi
    run gcloud compute tpus queued-resources create "$NAME" --node-id "$NAME" "${place[@]}" \
      --accelerator-type "${TYPE:-v5litepod-8}" \
      --runtime-version "${VERSION:-v2-alpha-tpuv5-lite}" "${spot[@]}"
    until [ "$dry_run" -eq 1 ] || gcloud compute tpus queued-resources describe "$NAME" \
      "${place[@]}" --format 'value(state.state)' | grep -q ACTIVE; do
      sleep 30
    done
    ;;
  setup)
    need REPOSITORY
    everywhere "git clone --branch ${REF:-main} $REPOSITORY jopd && cd jopd && python3 -m venv ~/venv \
&& ~/venv/bin/pip install -e '.[tpu,gcs]'"
    ;;
  train)
    need BUCKET
    # A stop by SIGTERM saves and ends with status 1; status 2 is a refused setting, which would
    # be refused again.
    everywhere "cd jopd && export JAX_COMPILATION_CACHE_DIR=$BUCKET/jax-cache && nohup bash -c '
until ~/venv/bin/python -m jopd.train ${arguments[*]}; do [ \$? -eq 2 ] && exit 2; sleep 10; done' \
> ~/train.log 2>&1 &"
    ;;
  logs)
    run gcloud compute tpus tpu-vm ssh "$NAME" "${place[@]}" --worker=0 \
      --command "tail -n +1 -f train.log"
    ;;
  delete)
    run gcloud compute tpus queued-resources delete "$NAME" "${place[@]}" --force --quiet
    ;;
  *)
    usage >&2
    exit 2
    ;;
esac
