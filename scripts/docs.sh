#!/usr/bin/env bash
# The documentation as web pages in build/docs/site. A link that leads nowhere, or a page that isn't in mkdocs.yml, fails it.
# It has an environment of its own, from the lock file's group `docs`: nothing of ours is imported, only read.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh
UV_SYSTEM_CERTS=1 UV_PROJECT_ENVIRONMENT=.cache/docs UV_PYTHON_DOWNLOADS=never \
  .tools/bin/uv sync --quiet --frozen --only-group docs --python .venv/bin/python

rm -rf build/docs
source=build/docs/source
mkdir -p $source
# As it lies in the tree: what is linked from a page is there, too.
tar -c --exclude=__pycache__ ./*.md docs examples deploy $(find src -name design.md) | tar -x -C $source
log=$(mktemp); trap 'rm -f "$log"' EXIT
# Not --quiet: what it doesn't say it doesn't count as a fault either.
NO_MKDOCS_2_WARNING=1 .cache/docs/bin/mkdocs build >"$log" 2>&1 || { cat "$log" >&2; die "the documentation has faults"; }
say "build/docs/site/index.html"
