#!/bin/bash
# One run as a Slurm array, a GPU a task:
#   job=$(sbatch --parsable --array=1-8 bench/slurm_array.sh RUN_FOLDER --suite paper --data DIR)
#   sbatch --dependency=afterok:$job --gres=gpu:1 --wrap 'python -m bench run --output RUN_FOLDER --suite paper --data DIR'
# RUN_FOLDER lies on a disk that all tasks see. A task that was cut goes on when it is queued again.
#SBATCH --job-name=stylebench
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
set -euo pipefail

folder=${1:?the run folder is missing: sbatch --array=1-8 $0 RUN_FOLDER [arguments of python -m bench run]}
shift
exec python -m bench run --output "$folder" --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" "$@"
