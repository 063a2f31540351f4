#!/usr/bin/env bash
# Trains on GPU nodes under Slurm, one process a node; submitted from the clone, which all nodes see:
#   sbatch --nodes=4 --gpus-per-node=8 --time=24:00:00 launch/slurm.sh -- --config=configs/base64.py --workdir=/shared/base64
# sbatch's own flags go before the script; these after it, then -- and the flags of launch.train:
#   --python=PATH        the interpreter; .venv/bin/python by default (docs/clusters.md)
#   --max_restarts=100   how often the job is put back into the queue, time limits included
#   --dry-run            print the commands (needs no Slurm)
# Five minutes before the time limit the tasks get SIGTERM, save and exit 42, and the job goes back into the queue; where
# saving takes longer, submit with --signal=TERM@SECONDS. Exit codes: docs/clusters.md.
#SBATCH --job-name=ediffi_jax
#SBATCH --ntasks-per-node=1
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}" # Slurm runs a copy of this file, elsewhere
[[ -f launch/flags.sh ]] || { echo "error: $PWD is no clone of ediffi_jax; submit from there" >&2 && exit 2; }
source launch/flags.sh

python=.venv/bin/python max_restarts=100 dry_run=''
read_flags "python max_restarts" "dry_run" "$@"
counts 0 max_restarts
workdir_for_all /shared/base64
job="${SLURM_JOB_ID:-JOB}" nodes="${SLURM_JOB_NUM_NODES:-1}" restarts="${SLURM_RESTART_COUNT:-0}"
gpus="${SLURM_GPUS_ON_NODE:-0}"

# JAX reads from Slurm who the coordinator is, and how many processes there are. It would also give each process one GPU;
# ours has all of its node's.
if [[ "$gpus" -gt 0 ]]; then JAX_LOCAL_DEVICE_IDS="$(seq -s, 0 $((gpus - 1)))" && export JAX_LOCAL_DEVICE_IDS; fi
step=(srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --cpu-bind=none "$python" -u -m launch.train --distributed)
step+=("${VERB_FLAGS[@]}")
if [[ -n "$dry_run" ]]; then
  show "${step[@]}"
  echo "# after exit code 42, or 128 and above:"
  show scontrol requeue "$job"
  exit
fi
[[ -n "${SLURM_JOB_ID:-}" ]] || mistake "this is not a Slurm job; expected sbatch launch/slurm.sh, or --dry-run"
[[ -x "$(command -v "$python")" ]] || mistake "--python=$python is no interpreter here; expected one that all nodes see"

# Slurm sends this shell SIGTERM only where the job ends: cancelled, or preempted, when Slurm requeues it by itself.
ended=''
trap 'ended=1' TERM
code=0
"${step[@]}" || code=$?
if ! worth_a_restart "$code"; then exit "$code"; fi
if [[ -n "$ended" ]]; then
  echo "exit code $code while Slurm ends the job; not requeued here"
elif [[ "$restarts" -ge "$max_restarts" ]]; then
  echo "error: exit code $code, and --max_restarts=$max_restarts are used up; submitted again it goes on" >&2
else
  echo "exit code $code: requeue $((restarts + 1)) of at most $max_restarts"
  scontrol requeue "$job" || echo "error: Slurm does not requeue job $job; submitted again it goes on" >&2
fi
exit "$code"
