#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'TEXT'
Train on a Cloud TPU VM or pod slice: one command on every worker, which find each other by themselves.

  bash launch/tpu_vm.sh COMMAND --name NAME --zone ZONE [OPTIONS] [-- ARGUMENTS OF ssljax.train]

  bash launch/tpu_vm.sh all --name ssl --zone us-east5-b --type v6e-16 --version v2-alpha-tpuv6e --spot --queued -- \
    --config configs/simclr_resnet50_imagenet.py --workdir gs://BUCKET/runs/simclr

Commands
  create   make the TPU VM (with --queued: ask for it and wait until it is there)
  setup    copy this repository to every worker, install requirements.txt and jax[tpu] there
  run      start `python -m ssljax.train --distributed ARGUMENTS` on every worker; it goes on if the connection breaks
  logs     follow worker 0's log until the run ends; the exit code is the run's
  delete   delete the TPU VM (and its queued resource)
  all      create, setup, run, logs. It does not delete: a failed run can be looked at, and run again to resume

Options
  --name NAME        the TPU's name
  --zone ZONE        its zone
  --project PROJECT  the Google Cloud project (default: gcloud's)
  --type TYPE        accelerator type, for create: v5litepod-16, v6e-16, v4-32 ...
  --version VERSION  runtime version, for create: v2-alpha-tpuv6e, v2-alpha-tpuv5-lite, tpu-ubuntu2204-base ...
  --spot             cheaper, can be taken away at any time
  --queued           by a queued resource
  --python PYTHON    interpreter on the workers (default python3.11; installed by apt if it is not there)
  --dry-run          print every command that would be executed, quoted for a shell, and execute none

The workdir must be one that all workers see: a gs:// path. The repository is copied as it is now, without .venv and runs/.
TEXT
}

die() {
  echo "tpu_vm.sh: $*" >&2
  exit 2
}

# -------------------------------------------------------------------------------------------------------- arguments
name="" zone="" project="" type="" version="" spot="" queued="" python=python3.11 dry_run=""
[[ "${1:-}" != "" ]] || { usage >&2; exit 2; }
subcommand="$1"
shift
case "$subcommand" in
  -h | --help | help) usage; exit 0 ;;
  create | setup | run | logs | delete | all) ;;
  *) die "unknown command $subcommand; expected create, setup, run, logs, delete or all (see --help)" ;;
esac
while (($#)); do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --name | --zone | --project | --type | --version | --python)
      [[ $# -ge 2 && "$2" != -* ]] || die "$1 needs a value"
      printf -v "${1#--}" %s "$2"
      shift
      ;;
    --spot) spot=1 ;;
    --queued) queued=1 ;;
    --dry-run) dry_run=1 ;;
    --) shift; break ;;
    *) die "unknown option $1; arguments of ssljax.train go after -- (see --help)" ;;
  esac
  shift
done
train=("$@")
[[ -n "$name" ]] || die "--name is missing"
[[ -n "$zone" ]] || die "--zone is missing"
if [[ "$subcommand" == create || "$subcommand" == all ]]; then
  [[ -n "$type" ]] || die "--type is missing: an accelerator type such as v6e-16"
  [[ -n "$version" ]] || die "--version is missing: a runtime version such as v2-alpha-tpuv6e"
fi
if [[ "$subcommand" == run || "$subcommand" == all ]]; then
  ((${#train[@]})) || die "$subcommand: the arguments of ssljax.train are missing; they go after --"
fi

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
where=("--zone=$zone")
if [[ -n "$project" ]]; then where+=("--project=$project"); fi

execute() { # runs its arguments as one command, or prints them
  if [[ -n "$dry_run" ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

quoted() { # its arguments as one string that a remote shell splits back into the same words
  local words
  printf -v words '%q ' "$@"
  echo "${words% }"
}

on_worker() { # on_worker WORKER COMMAND: gcloud takes the remote command as one string
  execute gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" "--worker=$1" "--command=$2"
}

# --------------------------------------------------------------------------------------------------------- commands
create() {
  local options=("--accelerator-type=$type")
  if [[ -n "$spot" ]]; then options+=(--spot); fi
  if [[ -z "$queued" ]]; then
    execute gcloud compute tpus tpu-vm create "$name" "${where[@]}" "${options[@]}" "--version=$version"
    return
  fi
  options+=("--node-id=$name" "--runtime-version=$version")
  execute gcloud compute tpus queued-resources create "$name" "${where[@]}" "${options[@]}"
  local describe=(gcloud compute tpus queued-resources describe "$name" "${where[@]}" "--format=value(state.state)")
  if [[ -n "$dry_run" ]]; then
    execute "${describe[@]}"
    return
  fi
  local state=""
  until [[ "$state" == ACTIVE ]]; do
    state="$("${describe[@]}")"
    echo "queued resource $name: $state" >&2
    case "$state" in
      ACTIVE) ;;
      FAILED | SUSPENDED | SUSPENDING | DELETING) die "the queued resource will not come: $state" ;;
      *) sleep 30 ;;
    esac
  done
}

setup() {
  local archive="${TMPDIR:-/tmp}/ssljax-$name.tar.gz"
  local leave_out=(--exclude-vcs --exclude=./.venv --exclude=./runs --exclude=./.cache --exclude=__pycache__)
  execute tar -C "$root" "${leave_out[@]}" -czf "$archive" .
  execute gcloud compute tpus tpu-vm scp "$archive" "$name:ssljax.tar.gz" "${where[@]}" --worker=all
  execute rm -f "$archive"
  local venv package
  venv="$(quoted "$python" -m venv .venv)"
  package="sudo apt-get update -q && sudo apt-get install -qy $(quoted "$python" "$python-venv")"
  local install="mkdir -p ssljax && tar -xzf ssljax.tar.gz -C ssljax && cd ssljax"
  install+=" && { $venv || { $package && $venv; }; }"
  install+=" && .venv/bin/python -m pip install -q -r requirements.txt 'jax[tpu]'" # requirements.txt pins which jax
  on_worker all "$install"
}

run() {
  # Detached, so that the run outlives the connection; its exit code is kept for `logs`.
  local words
  words="$(quoted .venv/bin/python -m ssljax.train --distributed "${train[@]}")"
  local job="(trap '' HUP; $words; echo \$? > train.status) > train.log 2>&1 < /dev/null &"
  on_worker all "cd ssljax && rm -f train.status && { $job echo \$! > train.pid; }"
}

logs() {
  # shellcheck disable=SC2016  # expanded on the worker
  on_worker 0 'cd ssljax && tail -n +1 -s 0.5 -F --pid="$(cat train.pid)" train.log; exit "$(cat train.status)"'
}

delete() {
  if [[ -n "$queued" ]]; then
    execute gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
  else
    execute gcloud compute tpus tpu-vm delete "$name" "${where[@]}" --quiet
  fi
}

if [[ "$subcommand" == all ]]; then
  create
  setup
  run
  logs
else
  "$subcommand"
fi
