#!/usr/bin/env bash
""":"
# Stage 1 alone: κ of every matrix of a checkpoint. Bash and Python in one file, as train.sh.
#   bash launch/kappa_scan.sh MODEL [--output ranking.json …]     all cores of this host
#   srun   bash launch/kappa_scan.sh MODEL …                      each task is a rank, on any number of nodes
#   mpirun bash launch/kappa_scan.sh MODEL --backend mpi …        the same over MPI
#   deepspeed launch/kappa_scan.sh MODEL …, or torchrun           their ranks, also with --hostfile
# PYTHON: the interpreter, if the environment that has this project isn't active.
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# sbatch runs a copy of its script, made elsewhere
[ -e "$repository/launch/environment.sh" ] || repository=${SLURM_SUBMIT_DIR:-$PWD}
if [ ! -e "$repository/launch/environment.sh" ]; then
  echo "error: this is a copy of launch/kappa_scan.sh, and $repository isn't the repository that it came from. Submit from there." >&2
  exit 2
fi
# shellcheck source=launch/environment.sh
. "$repository/launch/environment.sh"
PYTHON=$(find_installed_python)
export PYTHON PYTHONPATH="$repository/pipeline${PYTHONPATH:+:$PYTHONPATH}"
exec "$PYTHON" -u "${BASH_SOURCE[0]}" "$@"
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

sys.exit(main(["scan", *sys.argv[1:]]))
