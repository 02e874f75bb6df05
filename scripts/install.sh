#!/usr/bin/env bash
# install.sh [PREFIX]: installs this bundle with no network, then `kybernate doctor` says what the host can do.
#
# PREFIX is /opt/kybernate for root, else ~/.local/share/kybernate. Each version gets a directory of its own,
# PREFIX/VERSION, so that workloads running under an older one keep their files; PREFIX/bin/kybernate points at the newest.
# Without PREFIX, kybernate is also linked into /usr/local/bin (root) or ~/.local/bin. Nothing else is touched.
set -Eeuo pipefail
die() { printf 'error: %s\n' "$*" >&2; exit 1; }
given=${1:-}
here=$(cd "$(dirname "$0")" && pwd)
cd "$here"
version=$(cat VERSION) wanted=$(cat PYTHON)

sha256sum --quiet --strict --check SHA256SUMS || die "the bundle is damaged; unpack it again"

python=
for candidate in "${KYBERNATE_PYTHON:-}" "python$wanted" python3 /usr/bin/python3; do
  [ -n "$candidate" ] || continue
  if "$candidate" -c "import sys, venv; sys.exit('%d.%d' % sys.version_info[:2] != '$wanted')" 2>/dev/null; then
    python=$candidate; break
  fi
done
[ -n "$python" ] || die "this bundle is for Python $wanted and none is here; install it, name it in KYBERNATE_PYTHON, or make the bundle with \`make bundle PYTHON=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || echo 3.x)\`"

if [ "$(id -u)" = 0 ]; then default=/opt/kybernate links=/usr/local/bin; else default=$HOME/.local/share/kybernate links=$HOME/.local/bin; fi
prefix=$(realpath -m "${given:-$default}")
target=$prefix/$version
mkdir -p "$prefix/bin"
rm -rf "$target"
trap 'rm -rf "$target"; die "the installation failed and was removed again"' ERR
"$python" -m venv --without-pip "$target"
pip_wheel=$(echo "$here"/pip-*.whl)
pip() { "$target/bin/python" "$pip_wheel/pip" --quiet --disable-pip-version-check --isolated install --no-index --no-deps "$@"; }
pip --find-links wheels --require-hashes -r requirements.txt
pip kybernate-*.whl

share=$target/share/kybernate
mkdir -p "$share"
cp -r share/. "$share/"
if [ -d criu ]; then cp -r criu "$share/criu"; fi
ln -sfn "$target/bin/kybernate" "$prefix/bin/kybernate"
if [ -z "$given" ]; then mkdir -p "$links" && ln -sfn "$prefix/bin/kybernate" "$links/kybernate"; fi

printf 'Kybernate %s is in %s\n' "$version" "$target"
case ":$PATH:" in
  *":$prefix/bin:"*) ;;
  *":$links:"*) [ -z "$given" ] || printf 'call it as %s/bin/kybernate, or: export PATH=%s/bin:$PATH\n' "$prefix" "$prefix" ;;
  *) printf 'call it as %s/bin/kybernate, or: export PATH=%s/bin:$PATH\n' "$prefix" "$prefix" ;;
esac
printf 'benchmarks, GPU tests and examples: %s\nnext: kybernate doctor\n' "$share"
