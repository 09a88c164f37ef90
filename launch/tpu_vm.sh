#!/usr/bin/env bash
set -euo pipefail
launcher=tpu_vm.sh
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=launch/arguments.sh
source "$root/launch/arguments.sh"

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
  all      create, setup, run, logs. What preemption takes is deleted and made again, and the run goes on from its newest
           checkpoint. It does not delete at the end: a failed run can be looked at, and run again to resume
  watch    `all` from logs on: for a run that is under way

Options
  --name NAME        the TPU's name
  --zone ZONE        its zone
  --project PROJECT  the Google Cloud project (default: gcloud's)
  --type TYPE        accelerator type, to create: v5litepod-16, v6e-16, v4-32 ...
  --version VERSION  runtime version, to create: v2-alpha-tpuv6e, v2-alpha-tpuv5-lite, tpu-ubuntu2204-base ...
  --spot             cheaper, can be taken away at any time
  --queued           by a queued resource: waits for capacity, also after a preemption
  --restarts K       all, watch: how often it starts again after a preemption, a stop with exit code 75 or a broken
                     connection (default 20)
  --python PYTHON    interpreter on the workers (default python3.11; installed by apt if it is not there)
  --dry-run          print every command that would be executed, quoted for a shell, and execute none

The workdir must be one that all workers see: a gs:// path. The repository is copied as it is now, without .git, .venv, runs/.
TEXT
}

# -------------------------------------------------------------------------------------------------------- arguments
name="" zone="" project="" type="" version="" spot="" queued="" python=python3.11 restarts=20 dry_run=""
[[ "${1:-}" != "" ]] || { usage >&2; exit 2; }
subcommand="$1"
shift
case "$subcommand" in
  -h | --help | help) usage; exit 0 ;;
  create | setup | run | logs | delete | all | watch) ;;
  *) die "unknown command $subcommand; expected create, setup, run, logs, delete, all or watch (see --help)" ;;
esac
while (($#)); do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --name | --zone | --project | --type | --version | --python | --restarts)
      [[ $# -ge 2 && -n "$2" && "$2" != -* ]] || die "$1 needs a value (see --help)"
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
[[ -n "$name" ]] || die "--name is missing: a name for the TPU, e.g. --name ssl"
[[ "$name" =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]] || die "--name $name: expected lower-case letters, digits and -, a letter first"
[[ -n "$zone" ]] || die "--zone is missing: where the TPU is, e.g. --zone us-east5-b"
[[ "$zone" =~ ^[a-z]+(-[a-z0-9]+)+$ ]] || die "--zone $zone: expected one like us-east5-b"
check_number --restarts "$restarts" 0
case "$subcommand" in create | all | watch)
  [[ -n "$type" ]] || die "--type is missing: an accelerator type such as v6e-16"
  [[ "$type" =~ ^v[0-9a-z]+-[1-9][0-9]*$ ]] || die "--type $type: expected an accelerator type such as v6e-16 or v5litepod-8"
  [[ -n "$version" ]] || die "--version is missing: a runtime version such as v2-alpha-tpuv6e"
  ;;
esac
case "$subcommand" in
  run | all | watch)
    check_train "$root" "${train[@]}"
    check_elsewhere ""
    ;;
  *) ((${#train[@]} == 0)) || die "$subcommand starts no training; leave out -- and what follows" ;;
esac

where=("--zone=$zone")
if [[ -n "$project" ]]; then where+=("--project=$project"); fi

execute() { # runs its arguments as one command, or prints them
  if [[ -n "$dry_run" ]]; then show "$@"; else "$@"; fi
}

note() { # in a dry run, what follows from answers that it does not have
  echo "# $*"
}

tell() {
  echo "tpu_vm.sh: $*" >&2
}

on_worker() { # on_worker WORKER COMMAND: gcloud takes the remote command as one string
  execute gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" "--worker=$1" "--command=$2"
}

# --------------------------------------------------------------------------- commands: each returns 0 or why it failed
create() {
  local options=("--accelerator-type=$type")
  if [[ -n "$spot" ]]; then options+=(--spot); fi
  if [[ -z "$queued" ]]; then
    execute gcloud compute tpus tpu-vm create "$name" "${where[@]}" "${options[@]}" "--version=$version"
    return
  fi
  options+=("--node-id=$name" "--runtime-version=$version")
  execute gcloud compute tpus queued-resources create "$name" "${where[@]}" "${options[@]}" || return
  local describe=(gcloud compute tpus queued-resources describe "$name" "${where[@]}" "--format=value(state.state)")
  if [[ -n "$dry_run" ]]; then
    show "${describe[@]}"
    note "... every 30 seconds, until it says ACTIVE"
    return
  fi
  local state
  while :; do
    state="$("${describe[@]}")" || return
    tell "queued resource $name: $state"
    case "$state" in
      ACTIVE) return ;;
      FAILED | SUSPENDED | SUSPENDING | DELETING) return 1 ;;
      *) sleep 30 ;;
    esac
  done
}

setup() {
  local archive="${TMPDIR:-/tmp}/ssljax-$name.tar.gz" python_word="" venv package install
  local leave_out=(--exclude-vcs --exclude=./.venv --exclude=./runs --exclude=./.cache --exclude=__pycache__)
  execute tar -C "$root" "${leave_out[@]}" -czf "$archive" . || return
  execute gcloud compute tpus tpu-vm scp "$archive" "$name:ssljax.tar.gz" "${where[@]}" --worker=all || return
  execute rm -f "$archive" || return
  python_word="$(show "$python")"
  venv="$python_word -m venv .venv"
  package="sudo apt-get update -q && sudo apt-get install -qy $python_word $(show "$python-venv")"
  install="mkdir -p ssljax && tar -xzf ssljax.tar.gz -C ssljax && cd ssljax"
  install+=" && { $venv || { $package && $venv; }; }"
  install+=" && .venv/bin/python -m pip install -q -r requirements.txt 'jax[tpu]'" # requirements.txt pins which jax
  on_worker all "$install"
}

run() {
  # Detached, so that the run outlives the connection; its exit code is kept for `logs`. The lock says that it goes on:
  # the kernel lets go of it when the last process ends. gcloud sends the command again when a connection breaks: a worker
  # that has this very run going does nothing.
  local words job same
  words="$(show .venv/bin/python -m ssljax.train --distributed "${train[@]}")"
  same="{ echo 'another run goes on here: end it, or delete the TPU'; exit 3; }"
  job="(trap '' HUP; $words; echo \$? > train.status) > train.log 2>&1 < /dev/null & echo \$! > train.pid"
  on_worker all "cd ssljax && exec 9> train.lock && wanted=$(show "$words") \
&& if flock -n 9; then rm -f train.status; printf %s \"\$wanted\" > train.command; $job; \
else [ \"\$wanted\" = \"\$(cat train.command)\" ] || $same; fi"
}

logs() {
  # A run that ended without an exit code was ended with its machine: 75, as if it had been told to stop.
  # shellcheck disable=SC2016  # expanded on the worker
  on_worker 0 'cd ssljax && if flock -n train.lock true; then cat train.log; '\
'else tail -n +1 -s 0.5 -F --pid="$(cat train.pid)" train.log; fi; exit "$(cat train.status || echo 75)"'
}

delete() {
  if [[ -n "$queued" ]]; then
    execute gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
  else
    execute gcloud compute tpus tpu-vm delete "$name" "${where[@]}" --quiet
  fi
}

# ------------------------------------------------------------------------------------------------------- preemption
node_state() { # prints READY, PREEMPTED ... or ABSENT; fails if Google Cloud does not answer: nothing is deleted on a guess
  local said
  if said="$(gcloud compute tpus tpu-vm describe "$name" "${where[@]}" "--format=value(state)" 2>&1)"; then
    echo "${said##*$'\n'}"
  elif [[ "$said" == *NOT_FOUND* ]]; then
    echo ABSENT
  else
    echo "$said" >&2
    return 1
  fi
}

keep() { # keep FIRST: create, setup, run, logs from FIRST on. When one fails, the TPU's state tells from where to go on
  local steps=(create setup run logs) first="$1" left="$restarts" fresh="" step code state
  while :; do
    code=0
    for step in "${steps[@]:first}"; do
      "$step" || { code=$?; break; }
    done
    if ((code == 0)); then return; fi
    if [[ "$step" == create && -z "$fresh" ]]; then return "$code"; fi # refused at once: quota, a wrong type
    if [[ "$step" == logs && "$code" == 2 ]]; then return 2; fi        # a mistake of the user's, which stays one
    while :; do
      if ! state="$(node_state)"; then
        ((left-- > 0)) || { tell "$step: exit code $code, and Google Cloud does not answer about $name"; return "$code"; }
      elif [[ ! "$state" =~ ^(CREATING|STARTING|RESTARTING|REIMAGING|REPAIRING|STOPPING|DELETING|HIDING)$ ]]; then
        break
      fi
      sleep 30
    done
    case "$state,$step,$code" in
      READY,logs,75) first=2 ;; # told to stop: maintenance, a restarted worker
      READY,logs,255) first=3 ;; # the connection broke
      READY,setup,255 | READY,run,255) first=1 ;;
      READY,create,*) first=1 ;; # it came after all
      READY,*) return "$code" ;;
      *) first=0 fresh=1 ;;
    esac
    ((left-- > 0)) || { tell "$step: exit code $code, $name is $state; --restarts $restarts are used up"; return "$code"; }
    tell "$step: exit code $code, $name is $state; going on with ${steps[first]}, $left restarts left"
    if ((first == 0)); then
      if [[ "$step" == create ]]; then sleep 30; fi # no capacity: not at once again
      if [[ "$state" != ABSENT || -n "$queued" ]]; then delete || tell "could not delete $name"; fi
    fi
  done
}

case "$subcommand" in
  all) keep 0 ;;
  watch) keep 3 ;;
  *) "$subcommand" ;;
esac
if [[ -n "$dry_run" && ("$subcommand" == all || "$subcommand" == watch) ]]; then
  note "whenever one of them fails, up to $restarts times:"
  note "$(show gcloud compute tpus tpu-vm describe "$name" "${where[@]}" "--format=value(state)")"
  note "PREEMPTED, or gone: $(delete)"
  note "and everything from create on again; READY and exit code 75: from run on; a broken connection: logs again"
fi
