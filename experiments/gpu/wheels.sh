#!/usr/bin/env bash
# What a GPU machine with PyTorch, JAX, Flax, Optax, Orbax and transformers, but without a network,
# lacks for `run.sh`: wheels of Python 3.12 in wheels/ beside this file; their size comes last.
set -euo pipefail
cd "$(dirname "$0")"
rm -rf wheels
platforms=()
for glibc in 28 27 24 17; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
for package in annotated-types array-record beartype datasets dill dm-tree docstring-parser grain \
  importlib-resources multiprocess portpicker pydantic==2.14.4 pydantic-core==2.50.5 tensorboardX \
  tensorflow-datasets==4.9.10 trl typeguard typing-inspection tyro; do
  python -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
    --implementation cp "${platforms[@]}" --platform manylinux2014_x86_64 --dest wheels "$package"
done
du -sh wheels
