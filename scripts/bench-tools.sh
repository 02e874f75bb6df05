#!/usr/bin/env bash
# bench-tools.sh: builds what bench/tiers.py compares the store with into .cache/bench-tools: fio and rclone. Idempotent.
#
# Static programs, so that they can be carried to a GPU machine without a network. fio comes from Debian's source package
# (fetched by apt with a state directory of its own, its signature checked), with no engine but those for local files;
# rclone is a Go module. What can't be built is left out with one line: the benchmark then compares with what is there.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh

tools=$PWD/.cache/bench-tools
suite=bookworm
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
mkdir -p "$tools"
exec 9>.cache/bench-tools.lock
flock 9
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
chmod 755 "$work"

build_fio() {
  command -v apt-get gcc make >/dev/null && [ -e $keyring ] || return 1
  local from apt
  from=$({ cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources || true; } 2>/dev/null |
    grep -v '^#' | grep -oE 'https?://[^ ]+/debian/?( |$)' | head -1 | tr -d ' ') || true
  from=${from:-http://deb.debian.org/debian}
  mkdir -p "$work"/{lists,cache/archives}/partial "$work/source"
  : >"$work/status"
  printf '%s [signed-by='$keyring"] $from $suite main\n" deb deb-src >"$work/sources.list"
  apt=(-o "Dir::State=$work" -o "Dir::State::status=$work/status" -o "Dir::State::lists=$work/lists"
       -o "Dir::Cache=$work/cache" -o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=/dev/null
       -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null -o Debug::NoLocking=1
       -o APT::Architecture=amd64 -o APT::Architectures=amd64 -o Acquire::Languages=none -o APT::Sandbox::User=root)
  (
    set -e
    apt-get "${apt[@]}" -qq update
    cd "$work/source"
    apt-get "${apt[@]}" -qq --download-only source fio
    apt-get "${apt[@]}" -qq download libaio-dev
    tar xf fio_*.orig.tar.gz
    dpkg-deb --extract libaio-dev_*.deb aio
    export CPATH=$PWD/aio/usr/include LIBRARY_PATH=$PWD/aio/usr/lib/x86_64-linux-gnu
    cd fio-*/
    ./configure --build-static --disable-native --disable-numa --disable-rdma --disable-rados --disable-rbd \
      --disable-http --disable-gfapi --disable-libnfs --disable-pmem
    grep -q CONFIG_LIBAIO config-host.h
    make -j2 fio
    strip fio
  ) >"$work/log" 2>&1 || { grep -E "error|cannot find|undefined" "$work/log" | tail -3 >&2; return 1; }
  mv "$work"/source/fio-*/fio "$tools/fio"
}

build_rclone() {
  PATH=$PATH:/usr/local/go/bin
  command -v go >/dev/null || return 1
  cp -r bench/go/rclone "$work/rclone"
  (cd "$work/rclone" && CGO_ENABLED=0 GOFLAGS=-mod=mod go build -trimpath -ldflags='-s -w' -o "$tools/rclone" .) >&2
}

for tool in fio rclone; do
  [ -x "$tools/$tool" ] || "build_$tool" || say "$tool can't be built here: the benchmark compares without it"
  [ -x "$tools/$tool" ] && echo "$tools/$tool"
done
true
