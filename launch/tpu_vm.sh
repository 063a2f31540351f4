#!/usr/bin/env bash
# Trains on a slice of Cloud TPU VMs, or several: waits for it in the queue, installs, runs on all workers, follows, restarts.
#   bash launch/tpu_vm.sh --name=base64 --zone=us-west4-a --type=v5litepod-256 --ref=main \
#       -- --config=configs/base64.py --workdir=/shared/base64
# A slice of that name is used if it is there; else it is asked for as a queued resource. Started again, it stops what still
# runs there (which saves) and goes on; Ctrl-C only stops following. The slice costs money until it is deleted.
#   --slices=1           slices of that type, joined by the data-centre network
#   --spot               cheaper, and taken away at any time; asked for again when that happens
#   --repo=URL           what is installed, this clone's origin by default, …
#   --ref=main           … at a branch (of which a restart takes the newest commit), a tag or a full commit
#   --setup=COMMAND      run on every worker, in the clone, before training: to fetch data, or mount a disk
#   --verb=train         or encode, on a slice of one host
#   --runtime=VERSION    of the TPU software, instead of the chip's usual one
#   --extra="FLAGS"      more flags for queued-resources create, such as "--reserved --service-account=NAME"
#   --project=NAME       gcloud's default otherwise
#   --max_restarts=100   in all
#   --stop               stop what runs there; it saves. Nothing is started
#   --delete             delete the slice when the run has finished
#   --dry-run            print the gcloud commands
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/flags.sh"

name='' zone='' type='' slices=1 spot='' ref=main setup='' verb=train runtime='' extra='' project='' max_restarts=100
repo="$(git -C "$(dirname "${BASH_SOURCE[0]}")" config --get remote.origin.url || true)" stop='' delete='' dry_run=''
poll="${TPU_POLL_SECONDS:-30}" # between two looks at the queue
read_flags "name zone type slices repo ref setup verb runtime extra project max_restarts" "spot stop delete dry_run" "$@"
required name base64 zone us-west4-a
kubernetes_name name

check_what_to_run() {
  required type v5litepod-256 repo https://github.com/USER/ediffi_jax
  counts 0 max_restarts
  counts 1 slices
  case "$verb" in
    train) workdir_for_all /shared/base64 && VERB_FLAGS=(--distributed "${VERB_FLAGS[@]}") ;;
    encode) [[ "$slices" == 1 ]] || mistake "--slices=$slices with --verb=encode; expected 1, a slice of one host" ;;
    *) mistake "--verb=$verb; expected train or encode" ;;
  esac
  case "$type" in
    v5litepod-[1-9]*) runtime="${runtime:-v2-alpha-tpuv5-lite}" ;;
    v5p-[1-9]*) runtime="${runtime:-v2-alpha-tpuv5}" ;;
    v6e-[1-9]*) runtime="${runtime:-v2-alpha-tpuv6e}" ;;
    v[234]-[1-9]*) runtime="${runtime:-tpu-ubuntu2204-base}" ;;
    *) mistake "--type=$type; expected v4-N, v5litepod-N, v5p-N or v6e-N, such as v5litepod-256 (tpu7x: launch/xpk.sh)" ;;
  esac
}

# resource VERB FLAG …: gcloud on this queued resource; printed instead with --dry-run.
resource() {
  local action="$1" command
  shift
  command=(gcloud compute tpus queued-resources "$action" "$name" --zone="$zone")
  if [[ -n "$project" ]]; then command+=(--project="$project"); fi
  if [[ -n "$dry_run" ]]; then show "${command[@]}" "$@"; else "${command[@]}" "$@"; fi
}

everywhere() { resource ssh --node=all --worker=all --batch-size=all --command="$1"; }

# Of the queued resource; nothing where there is none, UNKNOWN and why where gcloud does not tell.
state() {
  local said
  if said="$(resource describe --format='value(state.state)' 2>&1)"; then
    echo "${said##*$'\n'}"
  elif [[ "$said" != *NOT_FOUND* ]]; then
    echo "UNKNOWN: $said"
  fi
}

create() {
  local nodes=(--node-id="$name") more=()
  if [[ "$slices" -gt 1 ]]; then nodes=(--node-count="$slices" --node-prefix="$name"); fi
  read -r -a more <<<"$extra"
  if [[ -n "$spot" ]]; then more+=(--spot); fi
  resource create --accelerator-type="$type" --runtime-version="$runtime" "${nodes[@]}" ${more[@]+"${more[@]}"}
}

# Returns when the slice is there; one that was taken away is asked for anew.
await_slice() {
  local now before=''
  while now="$(state)" && [[ "$now" != ACTIVE ]]; do
    if [[ "$now" != "$before" ]]; then echo "$name: ${now:-not there yet}"; fi
    before="$now"
    case "$now" in
      '') create ;;
      SUSPENDED) resource delete --force --quiet ;;
      FAILED) mistake "the request for $name FAILED; why: $(dry_run=1 resource describe); then delete it" ;;
    esac
    sleep "$poll"
  done
}

# What the workers are told. A run is a process group of its own that outlives the connection, and leaves number, log and
# exit code in run/.
stop_words() {
  cat <<'REMOTE'
for run in $(ls ~/ediffi_jax/run/*.pid 2>/dev/null); do
  touch "${run%.pid}.stopped"
  kill -TERM -- "-$(cat "$run")" 2>/dev/null || continue
  while kill -0 -- "-$(cat "$run")" 2>/dev/null; do sleep 1; done
done
REMOTE
}

# TPU VMs carry Python 3.10, so uv brings one. Nothing is replaced under a run that goes on.
install_words() {
  cat <<REMOTE
set -e
$(stop_words)
cd ~
[ -x ~/.local/bin/uv ] || curl -LsSf https://astral.sh/uv/install.sh | sh
[ -d ediffi_jax ] || git clone --quiet $(show "$repo") ediffi_jax
cd ediffi_jax
git fetch --quiet origin $(show "$ref")
git checkout --quiet --force FETCH_HEAD
~/.local/bin/uv venv --quiet --allow-existing --python 3.11 .venv
~/.local/bin/uv pip install --quiet --python .venv/bin/python -r requirements/gcp.txt 'jax[tpu]'
rm -f run/*.pid
$setup
REMOTE
}

# run_words ATTEMPT: said twice, as after a lost connection, it starts nothing twice. The shell around the verb outlives
# SIGTERM, so that the exit code is written.
run_words() {
  local line
  line="trap : TERM; $(show .venv/bin/python -u -m "launch.$verb" ${VERB_FLAGS[@]+"${VERB_FLAGS[@]}"})"
  cat <<REMOTE
cd ~/ediffi_jax || exit
mkdir -p run
if [ ! -e run/$1.pid ]; then
setsid nohup bash -c $(show "$line; echo \$? >run/$1.exit") >run/$1.log 2>&1 </dev/null &
echo \$! >run/$1.pid
fi
tail -n +1 -F --pid="\$(cat run/$1.pid)" run/$1.log 2>/dev/null
if [ -e run/$1.stopped ]; then echo "worker was stopped"; fi
echo "worker ended with \$(cat run/$1.exit 2>/dev/null || echo 137)"
REMOTE
}

# run ATTEMPT: follows until it ends; returns its exit code, of several workers' that which says most.
run() {
  local said codes code began now lost=0 last_words='worker \(was stopped\|ended with [0-9]*\)'
  while true; do
    began="$SECONDS"
    said="$({ everywhere "$(run_words "$1")" 2>&1 || true; } | tee >(cat >&2) | grep -o "$last_words")" || true
    if [[ "$said" == *"was stopped"* ]]; then
      echo "$name was stopped; the same command goes on"
      exit 42
    fi
    codes="$(grep -o '[0-9]*$' <<<"$said" | sort -n)" || true
    if [[ -n "$codes" ]]; then break; fi
    now="$(state)"
    if [[ "$now" != ACTIVE && "$now" != UNKNOWN* ]]; then return 137; fi
    if [[ $((SECONDS - began)) -gt 600 ]]; then lost=0; else lost=$((lost + 1)); fi
    [[ "$lost" -lt 100 ]] || mistake "the workers of $name do not answer; try: $(dry_run=1 everywhere hostname)"
    sleep "$poll"
  done
  for code in 2 1 42; do
    if grep -qx "$code" <<<"$codes"; then return "$code"; fi
  done
  return "$(tail -n 1 <<<"$codes")"
}

if [[ -n "$stop" ]]; then
  everywhere "$(stop_words)"
  exit
fi
check_what_to_run
if [[ -n "$dry_run" ]]; then
  state && create && everywhere "$(install_words)" && everywhere "$(run_words 0)"
  if [[ -n "$delete" ]]; then resource delete --force --quiet; fi
  exit
fi
command -v gcloud >/dev/null || mistake "there is no gcloud here; expected the Google Cloud CLI, or --dry-run"
now="$(state)"
[[ "$now" != UNKNOWN* ]] || mistake "gcloud does not tell whether $name is there: ${now//$'\n'/ }"
echo "to delete: $(dry_run=1 resource delete --force)"
for ((attempt = 0, first = $(date +%s); attempt <= max_restarts; attempt++)); do
  await_slice
  everywhere "$(install_words)"
  code=0
  run "$((first + attempt))" || code=$?
  if ! worth_a_restart "$code"; then
    if [[ "$code" == 0 && -n "$delete" ]]; then resource delete --force --quiet; fi
    exit "$code"
  fi
  echo "$name: exit code $code, restart $((attempt + 1)) of at most $max_restarts"
done
echo "error: exit code $code, and --max_restarts=$max_restarts are used up; the same command goes on" >&2
exit "$code"
