#!/usr/bin/env bash
# `python -m ssljax.plan ...` in an environment of its own that has the compiler of the chips of --topology: .venv-plan for TPUs,
# .venv-plan-gpu (6 GB) for GPUs. None of either is needed.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
if [[ " $* " =~ --?topology[=\ ](a100|h100|h200|b200): ]]; then
  own_environment .venv-plan-gpu 'jax[cuda13]' || true
else
  own_environment .venv-plan 'libtpu==0.0.42.*' || true
fi
exec "$python" -m ssljax.plan "$@"
