#!/usr/bin/env bash
# `python -m ssljax.plan ...` in an environment of its own that has the TPU compiler: .venv-plan. No TPU is needed.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
planner=.venv-plan
if [ ! -x "$planner/bin/python" ]; then
  echo "installing libtpu into $planner (a minute, once)"
  "$python" -m venv "$planner"
  "$planner/bin/python" -m pip install --quiet --disable-pip-version-check -r requirements.txt 'libtpu==0.0.42.*'
fi
exec "$planner/bin/python" -m ssljax.plan "$@"
