#!/usr/bin/env bash
# Builds the S3 server that tests and benchmarks use (versitygw, Apache-2.0) into .cache; prints its path. Idempotent.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh

version=v1.7.0
binary=$PWD/.cache/versitygw-$version/versitygw
mkdir -p .cache
exec 9>.cache/versitygw.lock
flock 9 # tests run side by side
if ! [ -x "$binary" ]; then
  PATH=$PATH:/usr/local/go/bin
  if ! command -v go >/dev/null; then
    say "no Go, so no S3 server: the tests that need one are left out"
    exit 0
  fi
  say "building the S3 server of the tests, some minutes"
  # CGO off: a static binary, which can be carried to another machine.
  CGO_ENABLED=0 GOBIN=$(dirname "$binary") GOFLAGS=-mod=mod go install -ldflags=-s "github.com/versity/versitygw/cmd/versitygw@$version" >&2 || {
    say "the S3 server can't be built: the tests that need one are left out"
    exit 0
  }
fi
echo "$binary"
