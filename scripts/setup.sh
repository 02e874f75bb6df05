#!/usr/bin/env bash
# Makes .venv with the locked dependencies. Idempotent, quick when nothing changed.
#
# What is missing system-wide (a Python with venv, a C compiler) is installed by apt when we are root, and only
# then; otherwise one line says what to install. Nothing outside this tree is touched in any other way.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh

mkdir -p .cache
exec 9>.cache/setup.lock
flock 9 # two shells at once would pull the environment from under each other

need_packages() { # need_packages WHY PACKAGE...
  local why=$1; shift
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "installing $* ($why)"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"; } >/dev/null ||
      die "apt-get could not install $* ($why); install them by hand and call again"
  else
    die "$why is missing: install $* (as root: apt-get install $*)"
  fi
}

python=$(find_python) || { need_packages "Python 3.11 or newer" python3 python3-venv ca-certificates; python=$(find_python); } ||
  die "no Python 3.11 or newer found; install one and set KYBERNATE_PYTHON=/path/to/python3"
command -v gcc >/dev/null || command -v cc >/dev/null || need_packages "a C compiler" gcc libc6-dev
[ -e /usr/include/stdio.h ] || need_packages "the C library's headers" libc6-dev

# uv, pinned by hash, in an environment of its own: it makes .venv exactly as uv.lock says.
if ! [ -x .tools/bin/uv ] || ! .tools/bin/uv --version | grep -qF " $(uv_version) "; then
  "$python" -m venv --clear .tools || { need_packages "Python's venv" python3-venv; "$python" -m venv --clear .tools; }
  .tools/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r scripts/uv-requirements.txt
fi

stamp=.venv/.locked-by
wanted="$(cat uv.lock pyproject.toml | sha256sum | cut -d' ' -f1) $python compiled"
if [ "$(cat $stamp 2>/dev/null)" != "$wanted" ]; then
  # System certificates: networks with their own authority are common. Compiled: where PYTHONDONTWRITEBYTECODE is set, as in many
  # containers, each process would compile all it imports: twice the time of every command.
  UV_SYSTEM_CERTS=1 UV_PROJECT_ENVIRONMENT=.venv UV_PYTHON_DOWNLOADS=never \
    .tools/bin/uv sync --quiet --frozen --compile-bytecode --python "$python"
  echo "$wanted" > $stamp
fi
