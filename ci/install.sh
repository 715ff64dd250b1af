#!/usr/bin/env bash
# Installs kdcompile from $SOURCE with the extras $EXTRAS, and PyTorch from $TORCH_INDEX.
set -euo pipefail

if [[ -n "${TORCH_INDEX:-}" ]]; then
  # before kdcompile, whose requirement it then meets: PyPI's has gigabytes of CUDA libraries
  python -m pip install --quiet --constraint "$SOURCE/constraints.txt" --index-url "$TORCH_INDEX" torch
fi
python -m pip install --quiet --constraint "$SOURCE/constraints.txt" "$SOURCE${EXTRAS:+[$EXTRAS]}"
kdcompile --version
