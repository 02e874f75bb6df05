#!/usr/bin/env bash
# criu.sh [PREFIX]: makes sure a CRIU of version 4.2 or newer can be found; PREFIX is .criu by default.
#
# Where the system's own CRIU is new enough nothing is done (--always: unpack all the same, for the bundle).
# Otherwise Debian 14's package (Debian 13's 4.1 can't dump a TCP socket on Linux 6.16 and newer) and the libraries it
# needs, its libc included, are fetched by apt with a state directory of its own, its signatures checked, and unpacked
# into PREFIX, where PREFIX/bin/criu runs it through its own ld.so. The system's packages, package lists and libc stay
# as they are. Needs no root.
#
# A machine that can't get it is told so in one line and the exit status is still 0: all but disk snapshots works.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh

always=; [ "${1:-}" = --always ] && { always=1; shift; }
prefix=$(realpath -m "${1:-.criu}")
minimum=4.2
suite=forky
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

left_out() { say "CRIU >= $minimum left out: $*; snapshots to disk won't work, all else does"; exit 0; }

version() { "$1" --version 2>/dev/null | sed -n 's/^Version: \([0-9.]*\).*/\1/p'; }
good() { [ -n "$1" ] && [ -x "$1" ] && printf '%s\n' $minimum "$(version "$1")" | sort -CV; }

good "$prefix/bin/criu" && exit 0
[ -n "$always" ] || ! good "$(command -v criu)" || exit 0
[ "$(uname -m)" = x86_64 ] || left_out "packages are fetched for x86_64 only, install it by hand"
command -v apt-get >/dev/null || left_out "no apt-get here, install the package 'criu' of your distribution"
if ! [ -e $keyring ]; then
  if [ "$(id -u)" = 0 ]; then
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends debian-archive-keyring; } >/dev/null 2>&1 || true
  fi
  [ -e $keyring ] || left_out "Debian's keys are missing, install debian-archive-keyring"
fi

mkdir -p .cache
exec 9>.cache/criu.lock
flock 9
good "$prefix/bin/criu" && exit 0

# The Debian mirror this machine is set up for; on another distribution, Debian's own.
mirror() {
  { cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources || true; } 2>/dev/null |
    grep -v '^#' | grep -oE 'https?://[^ ]+/debian/?( |$)' | head -1 | tr -d ' '
}
from=$(mirror || true); from=${from:-http://deb.debian.org/debian}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
mkdir -p "$work"/{lists,cache/archives}/partial "$work/root"
: > "$work/status"
echo "deb [signed-by=$keyring] $from $suite main" > "$work/sources.list"
apt=(-o "Dir::State=$work" -o "Dir::State::status=$work/status" -o "Dir::State::lists=$work/lists"
     -o "Dir::Cache=$work/cache" -o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=/dev/null
     -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null -o Debug::NoLocking=1
     -o APT::Architecture=amd64 -o APT::Architectures=amd64 -o Acquire::Languages=none
     -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false -o APT::Sandbox::User=root)
say "fetching CRIU of Debian $suite into $prefix (the system's is older or missing)"
{ apt-get "${apt[@]}" -qq update && apt-get "${apt[@]}" -qq -y --no-install-recommends --download-only install criu; } \
  >"$work/log" 2>&1 || { tail -3 "$work/log" >&2; left_out "$from can't be reached or doesn't carry $suite"; }

for package in "$work"/cache/archives/*.deb; do dpkg-deb --extract "$package" "$work/root"; done

# Only what runs: the program and the libraries it loads, found by asking its own ld.so.
libraries=usr/lib/x86_64-linux-gnu
loader=$libraries/ld-linux-x86-64.so.2
new=$prefix.new
rm -rf "$new"; mkdir -p "$new/bin" "$new/lib" "$new/licenses"
cp "$work/root/usr/sbin/criu" "$new/lib/criu"
cp -L "$work/root/$loader" "$new/lib/ld.so"
"$work/root/$loader" --library-path "$work/root/$libraries" --list "$new/lib/criu" |
  sed -n "s|.* => \($work/root/[^ ]*\).*|\1|p" | while read -r library; do cp -L "$library" "$new/lib/"; done
for package in "$work"/cache/archives/*.deb; do
  name=$(basename "$package"); name=${name%%_*}
  mkdir -p "$new/licenses"
  cp -L "$work/root/usr/share/doc/$name/copyright" "$new/licenses/$name" 2>/dev/null || true
done
(cd "$work/cache/archives" && sha256sum ./*.deb) > "$new/packages.sha256"
cat > "$new/bin/criu" <<'RUN'
#!/bin/sh
# CRIU of a newer distribution with the libraries it was built for; nothing of the system's is replaced.
lib=$(dirname "$(dirname "$(readlink -f "$0")")")/lib
exec "$lib/ld.so" --library-path "$lib" "$lib/criu" "$@"
RUN
chmod 755 "$new/bin/criu"
good "$new/bin/criu" || left_out "the unpacked CRIU doesn't run here: $("$new/bin/criu" --version 2>&1 | head -1)"
rm -rf "$prefix"; mv "$new" "$prefix"
