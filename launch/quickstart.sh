#!/usr/bin/env bash
# Pretrain SimCLR and SigLIP on the embedded pictures, evaluate both checkpoints, write report.html. No download of data, no screen.
#   bash launch/quickstart.sh [WORKDIR]        default: runs/quickstart
# Started again it resumes, or only evaluates what is there.
set -euo pipefail
here=$PWD
workdir=${1:-}
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
if [ -n "$workdir" ]; then workdir=$(cd "$here" && mkdir -p "$workdir" && cd "$workdir" && pwd); else workdir=runs/quickstart; fi
mkdir -p "$workdir"
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu} TFDS_DATA_DIR=${TFDS_DATA_DIR:-$workdir/data}

echo "1/3 SimCLR: two views of a picture agree"
"$python" -m ssljax.train --config configs/simclr_resnet_scenes.py:data=photo --workdir "$workdir/simclr"
echo "2/3 SigLIP: pictures and their captions agree"
"$python" -m ssljax.train --config configs/siglip_resnet_scenes.py --workdir "$workdir/siglip"
echo "3/3 restore both, judge them, write the report"
"$python" -m ssljax.evaluate --checkpoint "$workdir/simclr,$workdir/siglip" --report "$workdir/report.html" --results "$workdir/results.json"
echo "look at it: open $workdir/report.html"
