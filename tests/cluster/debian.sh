#!/usr/bin/env bash
# debian.sh DIRECTORY: unpacks nft and libseccomp of this machine's Debian or Ubuntu into DIRECTORY/debian.
#
# apt works in a state directory of its own, with the machine's sources and keys, so that nothing is installed and no root is needed.
# DIRECTORY/nft runs through the unpacked ld.so; DIRECTORY/debian/pkg-config answers for libseccomp alone.
set -euo pipefail
target=$(realpath -m "$1")
command -v apt-get >/dev/null || { echo "no apt-get: nft and libseccomp left out" >&2; exit 1; }
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{lists,cache/archives}/partial "$target"; chmod 755 "$work"; : > "$work/status"
apt=(-o "Dir::State=$work" -o "Dir::State::status=$work/status" -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache"
     -o Debug::NoLocking=1 -o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false -o APT::Sandbox::User=root)
{ apt-get "${apt[@]}" -qq update &&
  apt-get "${apt[@]}" -qq -y --no-install-recommends --download-only install nftables libseccomp-dev; } >"$work/log" 2>&1 ||
  { tail -3 "$work/log" >&2; exit 1; }
new=$target/debian.new
rm -rf "$new"; mkdir -p "$new/root" "$new/lib"
for package in "$work"/cache/archives/*.deb; do dpkg-deb --extract "$package" "$work/root"; done
nft=$(find "$work/root" -path '*sbin/nft' | head -1)
loader=$(find "$work/root" -name 'ld-linux-x86-64.so.2' -not -type l | head -1)
[ -n "$loader" ] || loader=$(find "$work/root" -name 'ld-linux-x86-64.so.2' | head -1)
paths=$work/root/lib/x86_64-linux-gnu:$work/root/usr/lib/x86_64-linux-gnu
cp "$nft" "$new/lib/nft"; cp -L "$loader" "$new/lib/ld.so"
"$loader" --library-path "$paths" --list "$nft" | sed -n "s|.* => \($work/root/[^ ]*\).*|\1|p" |
  while read -r library; do cp -L "$library" "$new/lib/"; done
mkdir -p "$new/seccomp"
cp -L "$(find "$work/root" -name libseccomp.a)" "$work"/root/usr/include/seccomp*.h "$new/seccomp/"
version=$(dpkg-deb -f "$(ls "$work"/cache/archives/libseccomp-dev_*.deb)" Version | sed 's/[-+].*//')
cat > "$new/pkg-config" <<RUN
#!/bin/sh
# All of pkg-config that building runc asks for.
for word; do case \$word in
  --modversion) echo $version;;
  --cflags) echo -I$target/debian/seccomp;;
  --libs) echo -L$target/debian/seccomp -lseccomp;;
esac; done
RUN
chmod 755 "$new/pkg-config"; rm -rf "$new/root" "$target/debian"; mv "$new" "$target/debian"
cat > "$target/nft" <<'RUN'
#!/bin/sh
# nft of the distribution with the libraries it was built for; nothing is installed.
lib=$(dirname "$(readlink -f "$0")")/debian/lib
exec "$lib/ld.so" --library-path "$lib" "$lib/nft" "$@"
RUN
chmod 755 "$target/nft"
