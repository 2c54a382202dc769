#!/usr/bin/env bash
# Train on a TPU VM slice: create it, install this checkout on every worker, run a jaxseq command there, fetch, delete.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: scripts/tpu_vm.sh [--dry-run] --name=NAME --zone=ZONE [options] ACTION [ACTION ...] [-- JAXSEQ ARGUMENTS]

actions, carried out in the order given:
  create    request the slice (--spot for a preemptible one) and wait for it
  setup     copy this checkout's committed files to every worker and install jaxseq[tpu,gcs] there
  run       run `jaxseq ARGUMENTS` on every worker at once, in the background; it continues when this shell ends
  logs      follow worker 0's log
  fetch     copy the workdir to --into, from worker 0 or from its bucket
  delete    delete the slice

options:
  --name=NAME           of the TPU VM
  --zone=ZONE           e.g. us-west4-a
  --accelerator=TYPE    default v5litepod-8
  --runtime=VERSION     default v2-alpha-tpuv5-lite; must fit the accelerator
  --project=PROJECT     default: gcloud's own
  --workdir=DIR         where the run keeps its files; default runs/tpu on the worker. More than one worker, and --spot, need
                        gs://bucket/folder (the slice's service account must be able to read and write objects there), or a
                        folder that all of them mount
  --into=DIR            where fetch puts them here; default runs
  --spot                can be preempted at any time; to resume, create, set up and run again with the same gs:// workdir
  --dry-run             print the commands, run none

example, a whole run:
  scripts/tpu_vm.sh --name=demo --zone=us-west4-a --workdir=gs://bucket/demo create setup run logs -- train \
    --config=retnet:1.3b --config.mesh.fsdp=8
HELP
}

fail() { echo "tpu_vm.sh: $1" >&2; exit 2; }

name="" zone="" accelerator=v5litepod-8 runtime=v2-alpha-tpuv5-lite project="" workdir=runs/tpu into=runs
spot=false dry_run=false actions=() arguments=()
while (($#)); do
  case "$1" in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --accelerator=*) accelerator=${1#*=} ;;
    --runtime=*) runtime=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --workdir=*) workdir=${1#*=} ;;
    --into=*) into=${1#*=} ;;
    --spot) spot=true ;;
    --dry-run) dry_run=true ;;
    -h | --help) usage; exit 0 ;;
    --) shift; arguments=("$@"); break ;;
    create | setup | run | logs | fetch | delete) actions+=("$1") ;;
    *) fail "there is no option or action '$1'; see scripts/tpu_vm.sh --help" ;;
  esac
  shift
done
[[ -n $name ]] || fail "which TPU VM? add --name=NAME"
[[ -n $zone ]] || fail "in which zone? add --zone=ZONE, e.g. --zone=us-west4-a"
[[ $workdir != *://* || $workdir == gs://?*/?* ]] || fail "--workdir=$workdir is no folder; name one, or gs://bucket/folder"
((${#actions[@]})) || fail "no action given; name at least one of: create setup run logs fetch delete"
if [[ " ${actions[*]} " == *" run "* ]] && ((!${#arguments[@]})); then
  fail "run needs the jaxseq command after --, e.g. -- train --config=mamba"
fi
for word in ${arguments[@]+"${arguments[@]}"}; do
  [[ $word != --workdir=* ]] || fail "give --workdir before the --: this script passes it on"
done
if ! $dry_run && ! command -v gcloud >/dev/null; then
  fail "gcloud is not installed; install the Google Cloud SDK, or look at the commands with --dry-run"
fi

shown() { local out; printf -v out '%q ' "$@"; echo "${out% }"; }

do_it() {
  if $dry_run; then shown "$@"; else "$@"; fi
}

tpu() { # tpu VERB ARGUMENTS...: one gcloud call about this slice
  local verb=$1
  shift
  do_it gcloud compute tpus tpu-vm "$verb" "$@" --zone="$zone" ${project:+--project="$project"}
}

on_workers() { tpu ssh "$name" --worker="$1" --command="$2"; }

create() {
  local extra=()
  $spot && extra+=(--spot)
  tpu create "$name" --accelerator-type="$accelerator" --version="$runtime" ${extra[@]+"${extra[@]}"}
}

setup() {
  local root archive
  root=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)
  if $dry_run; then archive=jaxseq.tar.gz; else archive=$(mktemp -d)/jaxseq.tar.gz; fi
  do_it git -C "$root" archive --format=tar.gz --output="$archive" HEAD
  tpu scp "$archive" "$name:jaxseq.tar.gz" --worker=all
  # shellcheck disable=SC2016  # expanded on the worker
  on_workers all 'rm -rf jaxseq && mkdir jaxseq && tar -xzf jaxseq.tar.gz -C jaxseq && python3 -m venv venv &&
venv/bin/pip install -q -U pip && venv/bin/pip install -q -e "./jaxseq[tpu,gcs]" && venv/bin/jaxseq list >/dev/null'
}

run() {
  local command
  command=$(shown venv/bin/jaxseq "${arguments[@]}" --workdir="$workdir")
  # All workers start the same program; jax.distributed finds the others through the slice's own metadata.
  on_workers all "JAXSEQ_DISTRIBUTED=1 nohup $command >jaxseq.log 2>&1 </dev/null & echo \$! >jaxseq.pid"
}

logs() { on_workers 0 "tail -n +1 -f jaxseq.log"; }

fetch() {
  do_it mkdir -p "$into"
  if [[ $workdir == gs://* ]]; then do_it gcloud storage cp --recursive "$workdir" "$into"; return; fi
  tpu scp --recurse "$name:$workdir" "$into" --worker=0
}

delete() { tpu delete "$name" --quiet; }

for action in "${actions[@]}"; do "$action"; done
