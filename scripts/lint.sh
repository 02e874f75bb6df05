#!/usr/bin/env bash
# All linters; every one runs, the exit status tells whether all were content.
set -uo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh
failed=()
check() { # check NAME COMMAND...
  local name=$1 log; shift
  log=$(mktemp)
  "$@" >"$log" 2>&1 || { failed+=("$name"); say "--- $name"; cat "$log" >&2; }
  rm -f "$log"
}
python_trees=(); for tree in src tests bench examples scripts native; do [ -d $tree ] && python_trees+=($tree); done
check "ruff check" .venv/bin/ruff check --quiet "${python_trees[@]}"
check "ruff format" .venv/bin/ruff format --quiet --check "${python_trees[@]}"
# As of the Python that is here: pyproject.toml's is the oldest, whose packages a newer one hasn't got.
check mypy .venv/bin/mypy --python-version "$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
check import-linter .venv/bin/lint-imports
check codespell .venv/bin/codespell src native tests bench examples docs scripts deploy ./*.md
check clang-format scripts/clang-format.sh
# A careless merge brings back old entries, whose lines were longer.
check "lines of CHANGELOG.md <= 120" sh -c '! LC_ALL=C.UTF-8 grep -nE "^.{121,}" CHANGELOG.md'
check bench-check .venv/bin/python bench/report.py --check
check "C warnings (gcc)" scripts/native.sh build/native
if command -v clang >/dev/null; then
  check "C warnings (clang)" scripts/native.sh build/clang -DCMAKE_C_COMPILER=clang
fi
[ ${#failed[@]} = 0 ] || die "not content: $(IFS=,; echo "${failed[*]}")"
