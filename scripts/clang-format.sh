#!/usr/bin/env bash
# clang-format.sh [-i]: whether the C files look as .clang-format says; with -i make them. Generated ones are left alone.
set -euo pipefail
cd "$(dirname "$0")/.."
mode=(--dry-run --Werror)
[ "${1:-}" = -i ] && mode=(-i)
find native -name '*.[ch]' ! -path '*/generated/*' -print0 | xargs -0 .venv/bin/clang-format --style=file "${mode[@]}"
