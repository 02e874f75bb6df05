#!/usr/bin/env bash
# The native code under AddressSanitizer + UndefinedBehaviorSanitizer, then under ThreadSanitizer, each with the tests
# that run it in real processes. The sanitizer's run-time is preloaded, since Python and the workloads are built without.
#
# Reports lie in build/KIND/reports. One that touches our code fails this script; the interpreter isn't instrumented, so
# ThreadSanitizer sees races between its calls that are none, and those don't count.
#
# TOPICS="cuda engine" chooses directories or files of tests/.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh
topics=(); for topic in ${TOPICS:-cuda engine agent/switching/test_switching.py simulated}; do [ -e "tests/$topic" ] && topics+=("tests/$topic"); done
failed=()

run() { # run KIND RUNTIME CMAKE_OPTION
  local kind=$1 runtime options
  runtime=$(gcc -print-file-name="$2")
  [ -e "$runtime" ] || { say "$kind left out: $2 is missing, install the compiler's sanitizer libraries"; return; }
  scripts/native.sh "build/$kind" "$3" -DCMAKE_BUILD_TYPE=Debug
  rm -rf "build/$kind/reports"; mkdir -p "build/$kind/reports"
  chmod 1777 "build/$kind/reports" # workloads run as users of their own
  options=log_path=$PWD/build/$kind/reports/report
  # Leaks are Python's by the thousand at its end. Newer kernels randomize more address bits than ThreadSanitizer bears.
  env LD_PRELOAD="$runtime" KYBERNATE_NATIVE_DIR="$PWD/build/$kind" KYBERNATE_SANITIZER="$kind" \
    ASAN_OPTIONS="$options:exitcode=99:detect_leaks=0:verify_asan_link_order=0:handle_segv=1" \
    UBSAN_OPTIONS="$options:exitcode=99:print_stacktrace=1" \
    TSAN_OPTIONS="$options:exitcode=0:die_after_fork=0:report_signal_unsafe=0" \
    setarch -R .venv/bin/python -m pytest -q -n 2 -p no:cacheprovider -o timeout=600 "${topics[@]}" || failed+=("$kind")
  # A report runs from one line of '=' to the next.
  awk 'BEGIN { RS = "=================+\n" } /native\/(preload|simulated|tests)\// { print; found = 1 } END { exit found }' \
    /dev/null $(find "build/$kind/reports" -type f) >"build/$kind/ours.txt" || {
      head -80 "build/$kind/ours.txt" >&2
      failed+=("$kind reports, all in build/$kind/ours.txt")
    }
}

[ ${#topics[@]} -gt 0 ] || die "no tests of native code found"
run asan libasan.so -DKYBERNATE_ASAN=ON
run tsan libtsan.so -DKYBERNATE_TSAN=ON
[ ${#failed[@]} = 0 ] || die "sanitizers found: $(IFS=,; echo "${failed[*]}")"
