#!/usr/bin/env bash
# A job on GPUs under SLURM: sbatch tpu/slurm.sh ARGUMENTS, one process a GPU; srun tells JAX where
# they all are. Before its time is up, and when it is preempted, the job is told by SIGTERM, saves,
# and is put back into the queue.
#SBATCH --job-name=jopd
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

if [ "${1:-}" = --dry-run ]; then
  shift
  printf '+ srun --kill-on-bad-exit=0 python -m jopd.train'
  printf ' %q' "$@"
  printf '\n+ scontrol requeue JOB (where the run was stopped, not refused)\n'
  exit 0
fi

srun --kill-on-bad-exit=0 python -m jopd.train "$@"
status=$?
# 1: stopped or failed, the same command goes on; 2: a refused setting, which would be refused again.
if [ "$status" -ne 0 ] && [ "$status" -ne 2 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 20 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
