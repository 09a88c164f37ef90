#!/usr/bin/env bash
# Converts models of transformers and timm in and out and compares, in an environment of its own that has torch: .venv-interop.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
interop=.venv-interop
if [ ! -x "$interop/bin/python" ]; then
  echo "installing torch, transformers and timm into $interop (some minutes, once)"
  "$python" -m venv "$interop"
  "$interop/bin/python" -m pip install --quiet --disable-pip-version-check -r requirements.txt torch==2.13.0 transformers timm
  # torchvision, which timm imports and transformers looks for, must be of the same build as torch (CPU, or a version of CUDA).
  if ! "$interop/bin/python" -c "import timm" 2>/dev/null; then
    echo "torchvision does not fit this build of torch: going on without it and timm, whose comparisons are skipped"
    "$interop/bin/python" -m pip uninstall --quiet --yes torchvision timm
  fi
fi
exec "$interop/bin/python" -m pytest -rs tests/test_interop.py "$@"
