#!/usr/bin/env bash
# `python -m ssljax.plan ...` in an environment of its own that has the TPU compiler: .venv-plan. No TPU is needed.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
own_environment .venv-plan 'libtpu==0.0.42.*' || true
exec "$python" -m ssljax.plan "$@"
