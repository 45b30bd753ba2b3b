#!/bin/bash
#SBATCH --job-name=dipole
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --signal=TERM@120
#SBATCH --requeue
# Two minutes before its time is up every process is told to stop: the step is finished and saved, and the job that is
# queued again goes on from there.
set -euo pipefail
head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes "$SLURM_NNODES" --nproc_per_node 8 --rdzv_id "$SLURM_JOB_ID" --rdzv_backend c10d \
  --rdzv_endpoint "$head_node:29500" -m dipole train --config examples/launch/many_nodes.yaml
