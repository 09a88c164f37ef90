#!/usr/bin/env bash
set -euo pipefail
launcher=local_multiprocess.sh
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=launch/arguments.sh
source "$root/launch/arguments.sh"

usage() {
  cat <<'TEXT'
Train with several processes on this machine, each with its own fake CPU devices: what a pod does, without a pod.

  bash launch/local_multiprocess.sh [--restarts K] [--dry-run] N [M] -- ARGUMENTS OF ssljax.train
  bash launch/local_multiprocess.sh 2 4 -- --config configs/simclr_resnet_scenes.py --workdir runs/two

  N             processes
  M             devices a process (default 4): N * M devices in all
  --restarts K  after a failure, or exit code 75 of a process that was told to stop, start all again, up to K times (default 0):
                the run goes on from its newest checkpoint. Not after exit code 2, a mistake, nor when this script was told to stop
  --dry-run     print the command of every process, run none

Process 0 writes here; the others write to temporary files, printed if a process fails. If one fails, all are ended and
the exit code is the first failure's. SIGTERM and Ctrl-C are passed on to every process as SIGTERM; a second one kills.
Exit code 75 is no failure: all have saved after the same step, and the same command goes on from there.
PYTHON (default: the repository's .venv/bin/python if it is there, else python) names the interpreter.
TEXT
}

# -------------------------------------------------------------------------------------------------------- arguments
dry_run="" restarts=0
positional=()
while (($#)); do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --dry-run) dry_run=1 ;;
    --restarts)
      [[ $# -ge 2 && -n "$2" && "$2" != -* ]] || die "--restarts needs a value (see --help)"
      restarts="$2"
      shift
      ;;
    --) break ;;
    -*) die "unknown option $1; arguments of ssljax.train go after -- (see --help)" ;;
    *) positional+=("$1") ;;
  esac
  shift
done
[[ "${1:-}" == "--" ]] || die "expected: N [M] -- ARGUMENTS (see --help)"
shift
((${#positional[@]} == 1 || ${#positional[@]} == 2)) || die "expected N [M] before --, got: ${positional[*]:-nothing}"
processes="${positional[0]}"
devices="${positional[1]:-4}"
check_number "N, the processes," "$processes" 1
check_number "M, the devices a process," "$devices" 1
check_number --restarts "$restarts" 0
check_train "$PWD" "$@"

python="${PYTHON:-}"
[[ -n "$python" ]] || { [[ -x "$root/.venv/bin/python" ]] && python="$root/.venv/bin/python"; } || python=python

command_of() { # fills `command` with the argument list of process $1
  command=(
    env
    "SSLJAX_COORDINATOR=localhost:$port"
    "SSLJAX_NUM_PROCESSES=$processes"
    "SSLJAX_PROCESS_ID=$1"
    "XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$devices"
    "JAX_PLATFORMS=cpu"
    "PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}"
    "$python" -m ssljax.train "${@:2}"
  )
}

if [[ -n "$dry_run" ]]; then
  port=PORT
  for ((id = 0; id < processes; id++)); do
    command_of "$id" "$@"
    show "${command[@]}"
  done
  exit 0
fi

# -------------------------------------------------------------------------------------------------------------- run
logs="$(mktemp -d)"
running=() # our process id -> the operating system's

end_all() { # signal $1 to those that still run
  for id in "${!running[@]}"; do
    kill "-$1" "${running[$id]}" 2>/dev/null || true
  done
}

forwarded=""
# shellcheck disable=SC2329  # the trap calls it
forward() {
  if [[ -z "$forwarded" ]]; then end_all TERM; else end_all KILL; fi
  forwarded=1
}
trap forward TERM INT
trap 'end_all KILL; rm -rf "$logs"' EXIT

# At the first failure the rest are ended: their next collective would wait for the dead one until --peer_timeout. By KILL: TERM
# they would answer by saving, together with the one that died. (Polling, since `wait -n` loses one of two that end together.)
attempt() { # starts all, waits for all; sets $status
  # A port of its own: the last one may still be held.
  port="$("$python" -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')"
  for ((id = 0; id < processes; id++)); do
    command_of "$id" "$@"
    if ((id == 0)); then
      "${command[@]}" &
    else
      : >"$logs/$id"
      "${command[@]}" >>"$logs/$id" 2>&1 &
    fi
    running[id]=$!
  done
  [[ -z "$forwarded" ]] || end_all TERM # it came before all were started

  local failed=""
  status=0
  while ((${#running[@]})); do
    for process in "${!running[@]}"; do
      if kill -0 "${running[$process]}" 2>/dev/null; then continue; fi
      code=0
      wait "${running[$process]}" 2>/dev/null || code=$?
      unset "running[$process]"
      if ((code != 0 && (status == 0 || status == 75))); then
        status=$code failed=$process
        [[ -n "$forwarded" ]] || ((code == 75)) || end_all KILL # 75: told to stop, as the others are; they are saving as well
      fi
    done
    sleep 0.1
  done

  if ((status != 0 && status != 75)); then
    for ((id = 1; id < processes; id++)); do
      echo "---- process $id of $processes" >&2
      cat "$logs/$id" >&2
    done
    echo "local_multiprocess.sh: process $failed ended first, with exit code $status; all were ended" >&2
  fi
}

while :; do
  attempt "$@"
  if ((status == 0 || status == 2 || restarts == 0)) || [[ -n "$forwarded" ]]; then exit "$status"; fi
  restarts=$((restarts - 1))
  echo "local_multiprocess.sh: exit code $status; starting all again, $restarts more times if need be" >&2
done
