#!/usr/bin/env bash
# bundle.sh PYTHON NVRTC: dist/kybernate-bundle-VERSION-cpXY-linux-x86_64.tar.gz, which installs with no network.
#
# In it: wheels for that Python as uv.lock says (hashes checked here and again at the installation), our own wheel with
# the native libraries, CRIU with its libraries, the GPU tests, benchmarks and examples. NVRTC=1 adds NVIDIA's run-time
# compiler, for hosts without the CUDA toolkit.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh
python=${1:-3.12} nvrtc=${2:-0}
[[ $python =~ ^3\.1[1-9]$ ]] || die "PYTHON=$python: give a version such as 3.12"
[[ $nvrtc =~ ^[01]$ ]] || die "NVRTC=$nvrtc: give 0 or 1"

version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' src/kybernate/__init__.py)
abi=cp${python/./}
name=kybernate-bundle-$version-$abi-linux-x86_64
export UV_SYSTEM_CERTS=1 UV_PYTHON_DOWNLOADS=never
PATH=$PWD/.venv/bin:$PATH
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
top=$work/$name
mkdir -p "$top/wheels" dist

# The lock covers all Pythons; pip can't ask for another one's markers, so uv narrows the list down first.
groups=(--no-default-groups --group test)
[ "$nvrtc" = 1 ] && groups+=(--group nvrtc)
.tools/bin/uv export --quiet --frozen --no-emit-project --no-header --no-annotate "${groups[@]}" -o "$work/locked.txt"
.tools/bin/uv pip compile --quiet --no-header --no-annotate --no-deps --generate-hashes --python-version "$python" \
  --python-platform x86_64-manylinux_2_28 "$work/locked.txt" -o "$top/requirements.txt"
platforms=(); for tag in manylinux_2_{28,27,26,25,24,17,12,5}_x86_64 manylinux{2014,2010,1}_x86_64; do platforms+=(--platform "$tag"); done
pip=(.tools/bin/python -m pip --disable-pip-version-check --quiet)
"${pip[@]}" download --no-deps --only-binary=:all: --require-hashes --implementation cp --python-version "$python" \
  --abi "$abi" --abi abi3 --abi none "${platforms[@]}" -d "$top/wheels" -r "$top/requirements.txt"
# A host's Python often comes without ensurepip; pip runs from its wheel there.
"${pip[@]}" download --no-deps --only-binary=:all: --require-hashes -d "$top" -r scripts/pip-requirements.txt

.tools/bin/uv build --quiet --wheel -o "$work/wheel" .
mv "$work"/wheel/kybernate-*.whl "$top/"

if [ -x .criu/bin/criu ]; then cp -a .criu "$work/criu"; else scripts/criu.sh --always "$work/criu"; fi
if [ -x "$work/criu/bin/criu" ]; then mv "$work/criu" "$top/criu"; fi

mkdir "$top/share"
cp pyproject.toml LICENSE CHANGELOG.md README.md "$top/share/"
for tree in bench examples tests/conftest.py tests/guardian.py tests/leftovers.py tests/gpu; do
  if [ -e $tree ]; then (tar --exclude=__pycache__ -c "$tree") | tar -x -C "$top/share"; fi
done
# Measured numbers stay in the repository; the bundle makes new ones.
rm -rf "$top/share/bench/results"
git describe --always --dirty >"$top/share/COMMIT" 2>/dev/null || echo unknown >"$top/share/COMMIT"

cp scripts/install.sh "$top/"
printf '%s\n' "$python" >"$top/PYTHON"; printf '%s\n' "$version" >"$top/VERSION"
(cd "$top" && find . -type f ! -name SHA256SUMS -print0 | sort -z | xargs -0 sha256sum >SHA256SUMS)
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$(git log -1 --format=%ct)" -C "$work" -c "$name" |
  gzip -9n >"dist/$name.tar.gz.part"
mv "dist/$name.tar.gz.part" "dist/$name.tar.gz"
say "dist/$name.tar.gz: $(du -h "dist/$name.tar.gz" | cut -f1), $(find "$top/wheels" -name '*.whl' | wc -l) wheels for Python $python"
