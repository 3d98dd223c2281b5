# Sourced by launch/slurm/*.sbatch after their site's lines; needs REPOSITORY, and VENV and CONTAINER, which may be empty.
#   kappaspeech WORDS…    the project's command, on the node that runs the batch script
#   on_all_ranks WORDS…   the same words on every task of the job; SIGUSR1 to this shell is passed on. Sets `code`
#   await_step            waits for the process `step`, through signals; sets `code`
#   requeue               ends this job and puts it back into the queue, under its id
#   submit WORDS…         sbatch without this job's variables, which would count as options; prints the new job's id
# `warned` is set once SIGUSR1 has come: the time limit is near (#SBATCH --signal=B:USR1@…).

set -uo pipefail
warned='' step='' code=0
# on the node alone if there is a container; in it, the image's own Python is the first on PATH
inside=()
if [ -n "$CONTAINER" ]; then
  inside=(apptainer exec --nv "$CONTAINER")
  PYTHON=python
else
  # shellcheck source=launch/environment.sh
  . "$REPOSITORY/launch/environment.sh"
  repository=$REPOSITORY
  [ -z "$VENV" ] || PYTHON=$VENV/bin/python
  PYTHON=$(find_installed_python) || exit 2
fi
# each task is a rank, also if there is one alone
export TASKS_ARE_RANKS=yes PYTHON PYTHONPATH="$REPOSITORY/pipeline${PYTHONPATH:+:$PYTHONPATH}"
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then
  # srun takes it from there since SLURM 22.05
  export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}
fi

kappaspeech() {
  ${inside[@]+"${inside[@]}"} "$PYTHON" -m kappaspeech "$@"
}

# A rank that is still loading doesn't hear it, so it is said again until the step has ended.
warn_ranks() {
  warned=yes
  [ -z "$step" ] || (while kill -USR1 "$step" 2>/dev/null; do sleep 5; done) &
}

on_all_ranks() {
  trap warn_ranks USR1
  # SLURM sends it to the ranks as well: wait for their checkpoint
  trap : TERM
  # if scontrol has changed the number of nodes, SLURM_NTASKS is still the old one
  local tasks=${SLURM_NTASKS_PER_NODE:+$((SLURM_JOB_NUM_NODES * SLURM_NTASKS_PER_NODE))}
  srun ${tasks:+--ntasks="$tasks"} --kill-on-bad-exit=1 ${inside[@]+"${inside[@]}"} "$@" &
  step=$!
  await_step
}

await_step() {
  local again
  while kill -0 "$step" 2>/dev/null; do
    wait "$step"
    code=$?
  done
  # if a signal ended the last wait, the step's own code can still be had
  wait "$step" 2>/dev/null
  again=$?
  [ "$again" -eq 127 ] || code=$again
  step=
}

requeue() {
  if [ "${SLURM_RESTART_COUNT:-0}" -ge "${MAX_REQUEUES:-100}" ]; then
    echo "error: this job was requeued $SLURM_RESTART_COUNT times, which is what MAX_REQUEUES allows. Submit it again." >&2
    exit 1
  fi
  echo "requeued: start $((${SLURM_RESTART_COUNT:-0} + 2)) continues from here"
  local id=$SLURM_JOB_ID
  [ -z "${SLURM_ARRAY_JOB_ID:-}" ] || id=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
  scontrol requeue "$id"
  # SLURM ends this shell
  sleep 60
  exit 1
}

submit() (
  for name in ${!SLURM_@} ${!SRUN_@}; do
    [ "$name" = SLURM_CONF ] || unset "$name"
  done
  id=$(sbatch --parsable "$@") || exit 1
  echo "${id%%;*}"
)
