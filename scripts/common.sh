# Shell helpers shared by the scripts here. Sourced, with the working directory at the top of the tree.

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

uv_version() { sed -n 's/^uv==\([0-9.]*\).*/\1/p' scripts/uv-requirements.txt; }

# Prints a Python >= 3.11 that can make virtual environments; $KYBERNATE_PYTHON wins.
find_python() {
  local candidate
  for candidate in ${KYBERNATE_PYTHON:-} python3 /usr/bin/python3 python3.14 python3.13 python3.12 python3.11; do
    candidate=$(command -v "$candidate") || continue
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  return 1
}
