#!/usr/bin/env bash
# Converts models of transformers and timm in and out and compares, in an environment of its own that has torch: .venv-interop.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
if own_environment .venv-interop torch==2.13.0 transformers timm; then
  # torchvision, which timm imports and transformers looks for, must be of the same build as torch (CPU, or a version of CUDA).
  if ! "$python" -c "import timm" 2>/dev/null; then
    echo "torchvision does not fit this build of torch: going on without it and timm, whose comparisons are skipped"
    "$python" -m pip uninstall --quiet --yes torchvision timm
  fi
fi
exec "$python" -m pytest -rs tests/test_interop.py "$@"
