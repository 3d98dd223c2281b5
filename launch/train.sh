#!/usr/bin/env bash
""":"
# Stage 2, one file for every launcher. This half is bash; Python takes it for a string and runs the other half.
#   deepspeed launch/train.sh --config C.yaml [--set KEY=VALUE …]   DeepSpeed's launcher, with --hostfile H on many hosts
#   bash launch/train.sh --config C.yaml                            this host: one rank a GPU, or NUM_RANKS of them
#   srun bash launch/train.sh --config C.yaml                       each task is a rank; so under mpirun
#   torchrun --nproc-per-node N launch/train.sh --config C.yaml
# PYTHON: the interpreter, if the environment that has this project isn't active.
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# sbatch runs a copy of its script, made elsewhere
[ -e "$repository/launch/environment.sh" ] || repository=${SLURM_SUBMIT_DIR:-$PWD}
if [ ! -e "$repository/launch/environment.sh" ]; then
  echo "error: this is a copy of launch/train.sh, and $repository isn't the repository that it came from. Submit from there." >&2
  exit 2
fi
# shellcheck source=launch/environment.sh
. "$repository/launch/environment.sh"
PYTHON=$(find_installed_python)
export PYTHON PYTHONPATH="$repository/pipeline${PYTHONPATH:+:$PYTHONPATH}"
# what the launchers set; SLURM_STEP_NUM_TASKS exists in an srun step alone, not in a batch script
if [ -n "${RANK:-}${OMPI_COMM_WORLD_RANK:-}${PMI_RANK:-}${TASKS_ARE_RANKS:-}" ] || [ "${SLURM_STEP_NUM_TASKS:-1}" -gt 1 ]; then
  # it asks for a checkpoint; Python would die of it before it has set its handler
  trap '' USR1
  exec "$PYTHON" -u "${BASH_SOURCE[0]}" "$@"
fi
share_cores() {
  OMP_NUM_THREADS=${OMP_NUM_THREADS:-$("$PYTHON" -m kappaspeech.processors "$1")}
  export OMP_NUM_THREADS
}
gpus=$("$PYTHON" -m kappaspeech.gpus)
if [ "$gpus" -gt 0 ]; then
  if [ "${NUM_RANKS:-1}" -gt "$gpus" ]; then
    echo "error: NUM_RANKS is $NUM_RANKS, and there are $gpus GPU(s) here, of which each takes one rank. Give a rank for each at" \
      "most, or DS_ACCELERATOR=cpu to train on processors." >&2
    exit 2
  fi
  if [[ ${CUDA_VISIBLE_DEVICES:-} =~ [^0-9,] ]]; then
    # names of GPUs or of parts of one, which DeepSpeed's launcher can't read; torchrun gives each rank one core
    share_cores "${NUM_RANKS:-$gpus}"
    exec "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node "${NUM_RANKS:-$gpus}" "${BASH_SOURCE[0]}" "$@"
  fi
  # without a number, the runner takes all GPUs
  ranks=(${NUM_RANKS:+--num_gpus "$NUM_RANKS"})
  if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
    # DeepSpeed unsets it itself, but after CUDA has read it: without NVML to ask, it then takes two GPUs for 0 and 1
    ranks=(--include "localhost:$(cut -d , -f "1-${NUM_RANKS:-$gpus}" <<< "$CUDA_VISIBLE_DEVICES")")
    unset CUDA_VISIBLE_DEVICES
  fi
else
  # one name for the host's processors: DeepSpeed would ask for a GPU
  export DS_ACCELERATOR=cpu
  share_cores "${NUM_RANKS:-1}"
  ranks=(--num_gpus "${NUM_RANKS:-1}")
fi
port=$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
exec "$PYTHON" -m deepspeed.launcher.runner -q ${ranks[@]+"${ranks[@]}"} --master_port "$port" "${BASH_SOURCE[0]}" "$@"
"""
import os
import sys

repository = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
source = os.path.join(repository, "pipeline")
if os.path.isdir(source):
    sys.path.insert(0, source)
    # for the processes that this one starts
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))

from kappaspeech.commands import main

# a folder whose name DeepSpeed can't take to other hosts
if os.environ.get("KAPPASPEECH_FOLDER"):
    os.chdir(os.environ["KAPPASPEECH_FOLDER"])
sys.exit(main(["train", *sys.argv[1:]]))
