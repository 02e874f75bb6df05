#!/usr/bin/env bash
# release.sh PYTHON...: what a release consists of, in dist/release: wheel, source archive, a bundle for each Python (3.12 ...), a bill of
# materials (CycloneDX) and SHA256SUMS. It publishes nothing: .github/workflows/release.yml does, and signs where all of it came from.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh
[ $# -gt 0 ] || set -- 3.12
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' src/kybernate/__init__.py)
changes=$(git status --porcelain)
[ -z "$changes" ] || die "there are changes that are in no commit: a release is what its commit says"
tag=$(git tag --points-at HEAD --list 'v*')
if [ -n "$tag" ]; then
  [ "$tag" = "v$version" ] || die "the commit is tagged $tag and src/kybernate/__init__.py says $version"
  grep -qF "## [$version]" CHANGELOG.md || die "CHANGELOG.md has no section [$version]"
fi

SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) # archives of one commit are the same byte for byte
export SOURCE_DATE_EPOCH UV_SYSTEM_CERTS=1 UV_PYTHON_DOWNLOADS=never
PATH=$PWD/.venv/bin:$PATH
rm -rf dist/release; mkdir -p dist/release
.tools/bin/uv build --quiet --sdist --wheel -o dist/release .
rm -f dist/release/.gitignore
for python in "$@"; do
  scripts/bundle.sh "$python" 0
  mv "dist/kybernate-bundle-$version-cp${python/./}-linux-x86_64.tar.gz" dist/release/
done
.tools/bin/uv export --quiet --frozen --no-default-groups --group test --all-extras --format cyclonedx1.5 |
  .venv/bin/python scripts/materials.py "$version" .criu/packages.sha256 >"dist/release/kybernate-$version.cdx.json"
(cd dist/release && sha256sum -- * >SHA256SUMS.part && mv SHA256SUMS.part SHA256SUMS)
say "dist/release: $(du -sh dist/release | cut -f1)"
cat dist/release/SHA256SUMS >&2
