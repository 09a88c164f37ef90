# shellcheck shell=bash
# Sourced by the launchers, which set $launcher to their name: how they refuse arguments and print commands.

die() {
  echo "${launcher:?}: $*" >&2
  exit 2
}

show() { # its arguments as one line that a shell splits into the same words
  local line
  printf -v line '%q ' "$@"
  printf '%s\n' "${line% }"
}

check_number() { # check_number OPTION VALUE LEAST
  if [[ ! "$2" =~ ^(0|[1-9][0-9]{0,5})$ ]] || (($2 < $3)); then die "$1 ${2:-(empty)}: expected a whole number of at least $3"; fi
}

check_train() { # check_train ROOT ARGUMENTS: those of ssljax.train, run in ROOT; sets $config and $workdir
  local root="$1" word previous=""
  shift
  config="" workdir=""
  (($#)) || die "the arguments of ssljax.train are missing; they go after --: -- --config FILE --workdir DIR"
  for word; do
    case "$previous" in
      --config | -config) config="$word" ;;
      --workdir | -workdir) workdir="$word" ;;
    esac
    case "$word" in
      --config=* | -config=*) config="${word#*=}" ;;
      --workdir=* | -workdir=*) workdir="${word#*=}" ;;
    esac
    previous="$word"
  done
  [[ -n "$config" ]] || die "--config is missing after --: a file of configs/, e.g. --config configs/simclr_resnet_scenes.py"
  [[ -n "$workdir" ]] || die "--workdir is missing after --: where checkpoints go, and where the same command goes on from"
  local file="${config%%:*}"
  [[ "$file" == /* ]] || file="$root/$file"
  [[ -f "$file" ]] || die "--config $config: there is no file $file; expected one of configs/, its path written from $root"
}

check_elsewhere() { # check_elsewhere [PATH]: after check_train, where other machines run it. They share buckets, and PATH if given
  [[ "$config" != /* ]] || die "--config $config: the workers have the repository only; expected a path within it, e.g. configs/NAME.py"
  [[ "$workdir" == gs://?*/?* || (-n "${1:-}" && "$workdir" == "$1"/?*) ]] ||
    die "--workdir $workdir: expected gs://BUCKET/NAME${1:+ or $1/NAME}, which all workers see and which outlives them"
}
