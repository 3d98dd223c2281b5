#!/usr/bin/env bash
# Installs what the tests need into .venv and runs all of them: style, types, the site, tests. Arguments go to pytest.
# TEST_PROCESSES: how many processes share the tests (default: one a core, eight at most).
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$repository"
. launch/environment.sh
make_environment demo,test,docs
ruff check .
ruff format --check .
# beside the tests, which wait a good deal; what these two say comes after them
scratch=$(mktemp -d)
types_and_site() {
  mypy || return
  # its own advertisement aside, the site must build without a warning
  NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet --site-dir "$scratch/site"
}
types_and_site > "$scratch/said" 2>&1 &
beside=$!
trap 'kill "$beside" 2>/dev/null || true; rm -rf "$scratch"' EXIT
cores=$(nproc) code=0
python -m pytest --numprocesses "${TEST_PROCESSES:-$((cores < 8 ? cores : 8))}" --dist loadscope --no-loadscope-reorder "$@" ||
  code=$?
wait "$beside" || code=$?
cat "$scratch/said"
exit "$code"
