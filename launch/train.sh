#!/usr/bin/env bash
""":"
# Stage 2, one file for every launcher. This half is bash; Python takes it for a string and runs the other half.
#   deepspeed launch/train.sh CONFIG.yaml          the DeepSpeed launcher, on one host or with --hostfile on many
#   bash launch/train.sh CONFIG.yaml               this host: one rank a GPU, or NUM_RANKS of them
#   srun bash launch/train.sh CONFIG.yaml          each task is a rank; so under mpirun
set -euo pipefail
# what the launchers set; SLURM_STEP_NUM_TASKS exists in an srun step alone, not in a batch script
if [ -n "${RANK:-}${OMPI_COMM_WORLD_RANK:-}${PMI_RANK:-}" ] || [ "${SLURM_STEP_NUM_TASKS:-1}" -gt 1 ]; then
  exec python -u -m pipeline train "$@"
fi
gpus=$( (nvidia-smi -L 2>/dev/null || true) | grep -c '^GPU' || true)
ranks=${NUM_RANKS:-$gpus}
[ "$ranks" -gt 0 ] || ranks=1
if [ "$gpus" -eq 0 ]; then
  # one name for the host's processors: DeepSpeed would ask for a GPU
  export DS_ACCELERATOR=cpu
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(( ($(nproc) + ranks - 1) / ranks ))}
fi
port=$(python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
exec deepspeed -q --num_gpus "$ranks" --master_port "$port" "${BASH_SOURCE[0]}" "$@"
"""
import sys

from pipeline.commands import main

sys.exit(main(["train", *sys.argv[1:]]))
