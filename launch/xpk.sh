#!/usr/bin/env bash
# Trains on TPU slices in GKE through XPK (pip install xpk):
#   bash launch/xpk.sh --cluster=pods --name=base64 --type=v5litepod-256 --image=REGION-docker.pkg.dev/PROJECT/ml/ediffi:1 \
#       -- --config=configs/base64.py --workdir=/shared/base64
# The image is built from launch/Dockerfile (docs/tpu.md). XPK restarts the workload on the exit codes 42 and 127 to 255.
#   --slices=1           slices of that type, joined by the data-centre network
#   --max_restarts=100   how often in all
#   --grace=120          seconds that Kubernetes grants from SIGTERM to the end; more than a save takes
#   --project= --zone=   of the cluster; gcloud's defaults otherwise
#   --extra="FLAGS"      more flags for xpk workload create, such as "--storage=NAME", a shared disk attached to the cluster
#   --dry-run            print the command
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/flags.sh"

cluster='' name='' type='' image='' slices=1 max_restarts=100 grace=120 project='' zone='' extra='' dry_run=''
read_flags "cluster name type image slices max_restarts grace project zone extra" "dry_run" "$@"
required cluster pods name base64 type v5litepod-256 image europe-docker.pkg.dev/project/ml/ediffi:1
kubernetes_name name
counts 0 max_restarts
counts 1 slices grace
workdir_for_all /shared/base64

# XPK runs the command in a shell that passes SIGTERM on to its child, which `exec` makes Python itself.
workload=(xpk workload create --cluster="$cluster" --workload="$name" --tpu-type="$type" --num-slices="$slices"
  --docker-image="$image" --max-restarts="$max_restarts" --termination-grace-period-seconds="$grace"
  --command="exec $(show python -u -m launch.train --distributed "${VERB_FLAGS[@]}")")
if [[ -n "$project" ]]; then workload+=(--project="$project"); fi
if [[ -n "$zone" ]]; then workload+=(--zone="$zone"); fi
read -r -a more <<<"$extra"
workload+=(${more[@]+"${more[@]}"})
if [[ -n "$dry_run" ]]; then show "${workload[@]}" && exit; fi
command -v xpk >/dev/null || mistake "there is no xpk here; expected pip install xpk, or --dry-run"
exec "${workload[@]}"
