#!/usr/bin/env bash
set -euo pipefail
launcher=submit.sh
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
# shellcheck source=launch/arguments.sh
source "$root/launch/arguments.sh"

usage() {
  cat <<'TEXT'
Train on Google Kubernetes Engine: a JobSet (launch/gke/tpu.yaml or gpu.yaml) with one pod a host. The cluster needs JobSet 0.6 or newer.

  bash launch/gke/submit.sh COMMAND --name NAME [OPTIONS] [-- ARGUMENTS OF ssljax.train]

  bash launch/gke/submit.sh all --name ssl --image IMAGE --tpu tpu-v6e-slice --topology 4x4 --spot -- \
    --config configs/simclr_resnet50_imagenet.py --workdir gs://BUCKET/runs/simclr
  bash launch/gke/submit.sh all --name ssl --image IMAGE --gpu nvidia-h100-80gb --nodes 2 -- --config ... --workdir gs://BUCKET/...

Commands
  apply    fill in the manifest and hand it to the cluster
  logs     follow pod 0, also over restarts, until the run ends: exit code 0 if it completed, 1 if it failed
  delete   delete the JobSet and its pods
  all      apply, logs

Options
  --name NAME             the JobSet's name
  --image IMAGE           holds the repository in /ssljax: see launch/gke/Dockerfile
  --tpu TYPE              tpu-v4-podslice, tpu-v5-lite-podslice, tpu-v5p-slice or tpu-v6e-slice, with
  --topology TOPOLOGY     the slice: 2x4, 4x4 ... (v4 and v5p: 2x2x1, 2x2x4 ...)
  --gpu TYPE              nvidia-h100-80gb, nvidia-a100-80gb, nvidia-l4 ..., with
  --gpus G                GPUs a node (default 8)
  --nodes N               hosts, of which each runs one process (GPU: default 1; TPU: what the topology needs)
  --spot                  on nodes that can be taken away at any time
  --restarts K            how often it starts again after a crash (default 3). After a preemption, or a stop with exit code 75, it
                          always does. A mistake (exit code 2) looks like a crash to the cluster
  --claim CLAIM:PATH      mount this persistent volume claim at PATH, e.g. for data; on several nodes it has to allow that
  --service-account NAME  of Kubernetes, with the right to write to the bucket (default: default)
  --namespace NAMESPACE, --context CONTEXT   kubectl's (default: its own)
  --dry-run               print the filled-in manifest and every kubectl command as a shell script, execute none

The workdir must be one that all pods see and that outlives them: a gs:// path, or one below the claim's PATH.
TEXT
}

# -------------------------------------------------------------------------------------------------------- arguments
name="" image="" tpu="" topology="" gpu="" gpus=8 nodes="" spot="" restarts=3 claim="" service_account=default
namespace="" context="" dry_run=""
[[ "${1:-}" != "" ]] || { usage >&2; exit 2; }
subcommand="$1"
shift
case "$subcommand" in
  -h | --help | help) usage; exit 0 ;;
  apply | logs | delete | all) ;;
  *) die "unknown command $subcommand; expected apply, logs, delete or all (see --help)" ;;
esac
while (($#)); do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --name | --image | --tpu | --topology | --gpu | --gpus | --nodes | --restarts | --claim | --service-account | --namespace | \
      --context)
      [[ $# -ge 2 && -n "$2" && "$2" != -* ]] || die "$1 needs a value (see --help)"
      option="${1#--}"
      printf -v "${option//-/_}" %s "$2"
      shift
      ;;
    --spot) spot=1 ;;
    --dry-run) dry_run=1 ;;
    --) shift; break ;;
    *) die "unknown option $1; arguments of ssljax.train go after -- (see --help)" ;;
  esac
  shift
done

label='^[a-z]([-a-z0-9]*[a-z0-9])?$'
[[ -n "$name" ]] || die "--name is missing: a name for the JobSet, e.g. --name ssl"
# The pods' names are longer, and end at 63.
[[ "$name" =~ $label && ${#name} -le 40 ]] || die "--name $name: expected at most 40 lower-case letters, digits and -, a letter first"
[[ "$namespace" =~ ^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$ ]] || die "--namespace $namespace: expected lower-case letters, digits and -"

check_slice() { # --topology of --tpu -> $nodes and $chips, those of a host
  local dimensions=2 example=4x4 size total=1 given
  case "$tpu" in
    tpu-v4-podslice | tpu-v5p-slice) dimensions=3 example=2x2x2 ;;
    tpu-v5-lite-podslice | tpu-v6e-slice) ;;
    *) die "--tpu $tpu: expected tpu-v4-podslice, tpu-v5-lite-podslice, tpu-v5p-slice or tpu-v6e-slice" ;;
  esac
  [[ -n "$topology" ]] || die "--topology is missing: the slice of $tpu, e.g. --topology $example"
  [[ "$topology" =~ ^([1-9][0-9]{0,2}x){$((dimensions - 1))}[1-9][0-9]{0,2}$ ]] \
    || die "--topology $topology: $tpu has $dimensions dimensions, e.g. $example"
  IFS=x read -ra given <<<"$topology"
  for size in "${given[@]}"; do total=$((total * size)); done
  if [[ -z "$nodes" ]]; then # one host has 1, 4 or 8 chips; more take hosts of 4
    nodes=1
    if ((total > 8 || (total == 8 && dimensions == 3))); then nodes=$((total / 4)); fi
  fi
  chips=$((total / nodes))
  if ((chips * nodes != total)) || { ((chips != 4)) && ((dimensions == 3 || nodes > 1 || (chips != 1 && chips != 8))); }; then
    die "--topology $topology: $total chips on $nodes nodes; expected 4 a node$( ((dimensions == 2)) && echo ", or one node of 1 or 8")"
  fi
}

if [[ "$subcommand" == apply || "$subcommand" == all ]]; then
  [[ -n "$image" ]] || die "--image is missing: one built by launch/gke/Dockerfile, where the cluster can pull it"
  [[ "$image" =~ ^[A-Za-z0-9][A-Za-z0-9._/:@-]*$ ]] || die "--image $image: expected the name of a container image, e.g. ssljax:1"
  [[ -n "$tpu" || -n "$gpu" ]] || die "--tpu or --gpu is missing: --tpu tpu-v6e-slice --topology 4x4, or --gpu nvidia-h100-80gb --nodes 2"
  [[ -z "$tpu" || -z "$gpu" ]] || die "--tpu and --gpu: expected one of them"
  [[ -z "$nodes" ]] || check_number --nodes "$nodes" 1
  check_number --restarts "$restarts" 0
  [[ "$service_account" =~ $label ]] || die "--service-account $service_account: expected the name of one of Kubernetes' service accounts"
  if [[ -n "$tpu" ]]; then
    check_slice
  else
    [[ -z "$topology" ]] || die "--topology is a TPU's; leave it out, GPUs take --nodes and --gpus"
    [[ "$gpu" =~ $label ]] || die "--gpu $gpu: expected the nodes' label cloud.google.com/gke-accelerator, e.g. nvidia-h100-80gb"
    check_number --gpus "$gpus" 1
    nodes="${nodes:-1}"
  fi
  check_train "$root" "$@"
  if [[ -n "$claim" ]]; then
    [[ "${claim%%:*}" =~ $label && "$claim" =~ :/[A-Za-z0-9._/-]+$ ]] || die "--claim $claim: expected CLAIM:PATH, e.g. --claim data:/data"
  fi
  check_elsewhere "${claim#*:}"
  for word; do
    [[ "$word" != *[[:cntrl:]]* ]] || die "an argument after -- holds a line break or another control character: $(show "$word")"
  done
else
  (($# == 0)) || die "$subcommand starts no training; leave out -- and what follows"
fi

# --------------------------------------------------------------------------------------------------------- manifest
yaml() { # its argument as a quoted YAML scalar
  local text="${1//\\/\\\\}"
  printf '"%s"' "${text//\"/\\\"}"
}

manifest() {
  local file=gpu.yaml word words="" devices text line
  if [[ -n "$tpu" ]]; then file=tpu.yaml; fi
  for word; do
    words+="${words:+, }$(yaml "${word//\$/\$\$}")" # Kubernetes expands $(NAME) in arguments, and reads $$ as $
  done
  devices="$(seq -s, 0 $((gpus - 1)))"
  local -A value=(
    [NAME]="$(yaml "$name")" [IMAGE]="$(yaml "$image")" [NODES]="$nodes" [PROCESSES]="$(yaml "$nodes")" [RESTARTS]="$restarts"
    [ACCELERATOR]="$(yaml "$tpu$gpu")" [TOPOLOGY]="$(yaml "$topology")" [CHIPS]="${chips:-}" [GPUS]="$gpus"
    [DEVICES]="$(yaml "$devices")" [COORDINATOR]="$(yaml "$name-workers-0-0.$name:8476")" [CLAIM]="$(yaml "${claim%%:*}")"
    [CLAIM_PATH]="$(yaml "${claim#*:}")" [SERVICE_ACCOUNT]="$(yaml "$service_account")" [ARGUMENTS]="[$words]"
  )
  # One placeholder a line, and what is filled in is not read again: it may look like a placeholder.
  while IFS= read -r line; do
    if [[ "$line" =~ ^\ *\#\  ]]; then continue; fi
    case "$line" in
      *'# with --spot') [[ -n "$spot" ]] || continue ;;
      *'# with --claim') [[ -n "$claim" ]] || continue ;;
    esac
    line="${line%% \# *}"
    if [[ "$line" =~ ^(.*)\$\{([A-Z_]+)\}(.*)$ ]]; then
      line="${BASH_REMATCH[1]}${value[${BASH_REMATCH[2]}]:?}${BASH_REMATCH[3]}"
    fi
    text+="$line"$'\n'
  done <"$root/launch/gke/$file"
  printf %s "${text%$'\n'}"
}

# --------------------------------------------------------------------------------------------------------- commands
kubectl=(kubectl)
if [[ -n "$context" ]]; then kubectl+=("--context=$context"); fi
if [[ -n "$namespace" ]]; then kubectl+=("--namespace=$namespace"); fi
pod_zero="jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0"
get_pods=(
  "${kubectl[@]}" get pods "--selector=$pod_zero" --sort-by=.metadata.creationTimestamp
  '--output=jsonpath={range .items[*]}{.metadata.name}={.status.phase}{"\n"}{end}'
)
get_state=("${kubectl[@]}" get "jobset/$name" '--output=jsonpath={.status.conditions[?(@.status=="True")].type}')

apply() {
  local filled
  filled="$(manifest "$@")"
  if [[ -n "$dry_run" ]]; then
    printf "%s <<'END_OF_MANIFEST'\n%s\nEND_OF_MANIFEST\n" "$(show "${kubectl[@]}" apply --filename=-)" "$filled"
  else
    "${kubectl[@]}" apply --filename=- <<<"$filled"
  fi
}

logs() {
  if [[ -n "$dry_run" ]]; then
    echo "# every 5 seconds, until the second says Completed or Failed; a pod 0 that is new and no longer Pending is followed"
    show "${get_pods[@]}"
    show "${get_state[@]}"
    echo "# $(show "${kubectl[@]}" logs --follow pod/POD)"
    return
  fi
  local pods last seen="" state
  while :; do
    pods="$("${get_pods[@]}")"
    last="${pods##*$'\n'}" # the newest; NAME=PHASE
    if [[ "$last" == ?*=* && "$last" != *=Pending ]]; then
      if [[ "${last%=*}" != "$seen" ]]; then
        seen="${last%=*}"
        "${kubectl[@]}" logs --follow "pod/$seen" || true # its node may be gone
      elif [[ "$last" == *=Running ]]; then # the connection broke
        "${kubectl[@]}" logs --follow --since=10s "pod/$seen" || true
      fi
    fi
    state="$("${get_state[@]}")"
    case " $state " in
      *" Completed "*) return 0 ;;
      *" Failed "*)
        echo "submit.sh: $name failed; kubectl describe jobset/$name tells why" >&2
        return 1
        ;;
    esac
    sleep 5
  done
}

delete() {
  local command=("${kubectl[@]}" delete "jobset/$name" --ignore-not-found)
  if [[ -n "$dry_run" ]]; then show "${command[@]}"; else "${command[@]}"; fi
}

if [[ "$subcommand" == all ]]; then
  apply "$@"
  logs
else
  "$subcommand" "$@"
fi
