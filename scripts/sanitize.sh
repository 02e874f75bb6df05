#!/usr/bin/env bash
# The native code under AddressSanitizer + UndefinedBehaviorSanitizer, then under ThreadSanitizer, each with the tests
# that run it in real processes. The sanitizer's run-time is preloaded, since Python and the workloads are built without.
#
# A report ends the process it is found in (exitcode 99) and lies in build/KIND/reports; any report fails this script.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh
topics=(); for topic in ${TOPICS:-cuda engine native simulated preload}; do [ -d "tests/$topic" ] && topics+=("tests/$topic"); done
failed=()

run() { # run KIND RUNTIME CMAKE_OPTION
  local kind=$1 runtime options
  runtime=$(gcc -print-file-name="$2")
  [ -e "$runtime" ] || { say "$kind left out: $2 is missing, install the compiler's sanitizer libraries"; return; }
  scripts/native.sh "build/$kind" "$3" -DCMAKE_BUILD_TYPE=Debug
  rm -rf "build/$kind/reports"; mkdir -p "build/$kind/reports"
  chmod 1777 "build/$kind/reports" # workloads run as users of their own
  options=log_path=$PWD/build/$kind/reports/report:exitcode=99
  # Leaks are Python's by the thousand at its end. Newer kernels randomize more address bits than ThreadSanitizer bears.
  env LD_PRELOAD="$runtime" KYBERNATE_NATIVE_DIR="$PWD/build/$kind" KYBERNATE_SANITIZER="$kind" \
    ASAN_OPTIONS="$options:detect_leaks=0:verify_asan_link_order=0:handle_segv=1" \
    UBSAN_OPTIONS="$options:print_stacktrace=1" \
    TSAN_OPTIONS="$options:die_after_fork=0:report_signal_unsafe=0:suppressions=$PWD/native/tests/tsan.supp" \
    setarch -R .venv/bin/python -m pytest -q -n 2 -p no:cacheprovider -o timeout=300 "${topics[@]}" || failed+=("$kind")
  if [ -n "$(ls -A "build/$kind/reports")" ]; then
    head -60 build/"$kind"/reports/* >&2
    failed+=("$kind reports")
  fi
}

[ ${#topics[@]} -gt 0 ] || die "no tests of native code found"
run asan libasan.so -DKYBERNATE_ASAN=ON
run tsan libtsan.so -DKYBERNATE_TSAN=ON
[ ${#failed[@]} = 0 ] || die "sanitizers found: $(IFS=,; echo "${failed[*]}")"
