#!/usr/bin/env bash
# native.sh BUILD_DIRECTORY [CMAKE_OPTION...]: configure and build the C parts.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh
directory=$1; shift
mkdir -p .cache
exec 9>.cache/native.lock
flock 9
PATH=$PWD/.venv/bin:$PATH
log=$(mktemp); trap 'rm -f "$log"' EXIT
{ cmake -S . -B "$directory" -G Ninja "$@" && cmake --build "$directory" -- -k 0; } >"$log" 2>&1 ||
  { grep -vE "^(--|\[[0-9]+/[0-9]+\] (Building|Linking|Re-checking))" "$log" >&2; die "the native build failed in $directory"; }

# A program that starts just now finds the old library or the new one, never half of one.
find "$directory/linked" -type f -printf '%P\n' | while read -r library; do
  cmp --silent "$directory/linked/$library" "$directory/$library" && continue
  mkdir -p "$(dirname "$directory/$library")"
  cp "$directory/linked/$library" "$directory/$library.new"
  mv -f "$directory/$library.new" "$directory/$library"
done
