#!/usr/bin/env bash
# On a machine with a GPU: is what it computes right, and how fast. From the checkout's root:
#
#     experiments/gpu/run.sh OUT [PART or a piece of what is measured ...]
#
# PART: correct, speed, trl, vocabulary, profile; all of them, in this order, where none is named.
# A piece of what is measured: "decode 128", say, or "Qwen3-0.6B step".
# What is measured is written to OUT/results.jsonl as it is found; the table comes last.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=$1
shift
mkdir -p "$out"
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if compgen -G 'experiments/gpu/wheels/*.whl' >/dev/null; then
  python3 -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade \
    --target "$site" experiments/gpu/wheels/*.whl
fi
export PYTHONPATH=$PWD:$site PYTHONUNBUFFERED=1
# A program that two of them need is compiled once.
export JAX_COMPILATION_CACHE_DIR=$site/compiled
# Several processes take turns on the card; each takes what it needs.
export XLA_PYTHON_CLIENT_PREALLOCATE=false
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true
python3 experiments/gpu/measure.py "$out" "$@"
