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
  command -v go >/dev/null || die "Go is missing: install it to build the S3 server that the tests use"
  # CGO off: a static binary, which can be carried to another machine.
  CGO_ENABLED=0 GOBIN=$(dirname "$binary") GOFLAGS=-mod=mod go install -ldflags=-s "github.com/versity/versitygw/cmd/versitygw@$version" >&2
fi
echo "$binary"
