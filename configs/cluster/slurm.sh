#!/bin/bash
# Two machines of eight GPUs. Handed in by: sbatch configs/cluster/slurm.sh DATASET_PATH RUN_FOLDER
#SBATCH --job-name=sat_vg
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@300
# Five minutes before the end every process is told to stop: the step is finished and saved, and the job, once it is in
# the queue again, goes on from there. DATASET_PATH and RUN_FOLDER lie where all machines see them.
set -euo pipefail
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun torchrun \
    --nnodes "$SLURM_NNODES" --nproc_per_node 8 --max-restarts 3 \
    --rdzv_backend c10d --rdzv_endpoint "$first:29500" --rdzv_id "$SLURM_JOB_ID" \
    -m sat_vg.backbone_finetuning.train \
    --config configs/large_data.yaml --dataset_path "$1" \
    --batch_size 1024 --num_workers 7 --save_every_minutes 10 \
    --checkpoint_dir "$2/checkpoints" --log_dir "$2/logs"
