#!/bin/bash
#SBATCH --job-name=ser-tiny-01234567
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=08:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --open-mode=append
#SBATCH --output=/shared/runs/tiny/submissions/0003/log.txt
#SBATCH --requeue

cd /shared || exit 2
home=/shared/runs/tiny/submissions/0003
export HF_HUB_OFFLINE=1
id="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}"; id="${id:-$SLURM_JOB_ID}"
stop="$home/meeting-$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}.stop"
trap ': > "$stop"' USR1


srun --kill-on-bad-exit=0 --wait=120 --cpus-per-task=8 \
    python -m launch.slurm_task ray /shared/runs/tiny/submissions/0003 /shared/runs/tiny/submissions/0003/outcome.json python -m launch.cli sweep /shared/runs/tiny/submissions/0003/recipe.yaml cluster.address=auto cluster.token_file=null &
step=$!
wait "$step"; code=$?
while kill -0 "$step" 2>/dev/null; do wait "$step"; code=$?; done
rm -f "$stop"
if [ "$code" -eq 75 ] && [ ! -e "$home/cancel" ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 100 ] &&
    [ "$(squeue --noheader --jobs "$id" --format %T)" = RUNNING ]; then
    echo "saved; back into the queue"
    scontrol requeue "$id"
fi
exit "$code"
