#!/usr/bin/env bash
# Stage 1 alone: κ of every matrix of a checkpoint.
#   bash launch/kappa_scan.sh MODEL [--output ranking.json …]     all cores of this host
#   srun  bash launch/kappa_scan.sh MODEL …                       each task is a rank, on any number of nodes
#   mpirun bash launch/kappa_scan.sh MODEL --backend mpi …        the same over MPI
set -euo pipefail
exec python -m pipeline scan "$@"
