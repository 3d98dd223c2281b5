# Sourced by launch/*.sh: `make_environment EXTRAS` puts this repository, installed with those extras, first on PATH.
# Needs `repository`. Installs again only where setup.py or the extras have changed.

find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python3.10 python; do
    if command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "Python 3.10 to 3.13 with its venv module is needed; set PYTHON to one." >&2
  return 2
}

make_environment() {
  local extras=$1 venv=${VENV:-$repository/.venv} python wanted
  python=$(find_python)
  wanted="$(cksum < "$repository/setup.py") $extras"
  if [ ! -x "$venv/bin/python" ]; then
    "$python" -m venv "$venv"
  fi
  export PATH="$venv/bin:$PATH"
  if ! grep -qxF "$wanted" "$venv/.installed" 2>/dev/null; then
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e "$repository[$extras]"
    echo "$wanted" >> "$venv/.installed"
  fi
}
