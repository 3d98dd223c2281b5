# Sourced by launch/*.sh. The first two functions need `repository`.
# make_environment EXTRAS: puts this repository, installed with those extras, first on PATH; installs again only if
#   setup.py or the extras have changed. What pip says goes to install.log in the environment; returns pip's code.
# find_installed_python: prints the interpreter that has this project's packages.

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
  local extras=$1 venv=${VENV:-$repository/.venv} python wanted code=0
  python=$(find_python)
  wanted="$(cksum < "$repository/setup.py") $extras"
  if [ ! -x "$venv/bin/python" ]; then
    "$python" -m venv "$venv"
  fi
  export PATH="$venv/bin:$PATH"
  if ! grep -qxF "$wanted" "$venv/.installed" 2>/dev/null; then
    "$venv/bin/python" -m pip install --disable-pip-version-check -e "$repository[$extras]" > "$venv/install.log" 2>&1 || code=$?
    if [ "$code" -ne 0 ]; then
      tail -n 15 "$venv/install.log" >&2
      echo "error: pip ended with $code; all that it said is in $venv/install.log. Without a network, or with a full disk, mend that" \
        "and start the same command again: it continues from here. If the environment itself is broken, remove $venv first." >&2
      return "$code"
    fi
    echo "$wanted" >> "$venv/.installed"
  fi
}

# PYTHON, if it is set, and no other; else the one on PATH, if an environment is active; else the repository's own .venv.
find_installed_python() {
  local candidate
  for candidate in "${PYTHON:-python}" "${PYTHON:-python3}" "${PYTHON:-$repository/.venv/bin/python}"; do
    if "$candidate" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("deepspeed") is None)' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: DeepSpeed isn't installed for ${PYTHON:-any Python on PATH}. Activate the environment that this project is in," \
    "or set PYTHON to its interpreter. pip install -e '$repository' installs it; bash launch/test.sh makes a .venv with it." >&2
  return 2
}
