#!/usr/bin/env bash
# For a host without a network: gathers the wheels that it lacks on a machine with a package index, and installs them there.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: bash launch/offline_wheels.sh gather DIR [--have FILE] [--python 3.12] [--machine x86_64] [--glibc 2.28] [--limit-mib 60]
       bash launch/offline_wheels.sh install DIR TARGET
  gather   puts into DIR the wheels of what setup.py asks for and the host lacks, in the versions of launch/images/constraints.txt.
           What comes without wheels is built, without DeepSpeed's operators, which nothing here uses.
    --have FILE     what the host has, as its "python -m pip list --format=freeze" says (default: launch/offline_host.txt)
    --python, --machine, --glibc   what the host is; a glibc newer than the one named is one too
    --limit-mib N   fail if the wheels are more than this together
  install  puts the wheels into the folder TARGET, on the host, and prints the line that makes Python find them. No index is asked.
  PYTHON=…   the interpreter to use
TEXT
}

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/environment.sh
. "$repository/launch/environment.sh"

gather() {
  local folder=${1:?gather wants a folder} python scratch
  shift
  mkdir -p "$folder"
  python=$(find_python)
  scratch=$(mktemp -d)
  # shellcheck disable=SC2064
  trap "rm -rf '$scratch'" EXIT
  "$python" -m venv "$scratch/venv"
  "$scratch/venv/bin/python" -m pip install --quiet --disable-pip-version-check packaging setuptools wheel
  "$scratch/venv/bin/python" "$repository/launch/offline_wheels.py" "$folder" "$@"
}

install() {
  local folder=${1:?install wants the folder of wheels} target=${2:?install wants a folder to install into} python=${PYTHON:-python3}
  mkdir -p "$target"
  target=$(cd "$target" && pwd)
  "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --no-cache-dir --upgrade \
    --target "$target" "$folder"/*.whl
  echo "export PYTHONPATH=$target:$repository/pipeline"
}

case ${1:-} in
  gather) shift; gather "$@" ;;
  install) shift; install "$@" ;;
  -h|--help) usage ;;
  *) usage >&2; exit 2 ;;
esac
