#!/usr/bin/env bash
# uvloop 0.23.0: libuv's documented switch UV_USE_IO_URING=0 does not keep an event loop from opening an io_uring.
#
# Expected: libuv's documentation names the environment variable UV_USE_IO_URING to turn io_uring off or on.
# Seen:     with the wheel of uvloop 0.23.0 a loop that does nothing has one descriptor `anon_inode:[io_uring]`, whether the variable
#           is absent, 0 or 1. With uvloop 0.21.0 the switch worked: two, none and two of them.
# Why it matters here: CRIU cannot dump an io_uring, and servers of models (uvicorn with uvloop) hold one from their start. The variable,
# which is the usual advice, does not help; a seccomp filter that answers io_uring_setup with ENOSYS does.
#
# Needs: Linux with io_uring not disabled (kernel.io_uring_disabled = 0), Python 3.11 to 3.13 with venv. Exit 0: as stated; 1: changed.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
if [ "$(cat /proc/sys/kernel/io_uring_disabled 2>/dev/null || echo 0)" != 0 ]; then
  echo "io_uring is disabled on this machine: nothing can be seen here" >&2; exit 2
fi
cat >"$work/look.py" <<'PY'
import os
import uvloop


async def rings() -> int:
    found = 0
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            found += "io_uring" in os.readlink(f"/proc/self/fd/{descriptor}")
        except FileNotFoundError:  # the descriptor of the directory itself
            continue
    return found


print(uvloop.run(rings()))
PY
status=0
for version in 0.23.0 0.21.0; do
  python3 -m venv "$work/$version"
  "$work/$version/bin/pip" install --quiet --disable-pip-version-check "uvloop==$version"
  for setting in absent 0 1; do
    case $version/$setting in 0.23.0/*) expected=1 ;; 0.21.0/0) expected=0 ;; *) expected=2 ;; esac
    if [ $setting = absent ]; then
      seen=$(env -u UV_USE_IO_URING "$work/$version/bin/python" "$work/look.py")
    else
      seen=$(UV_USE_IO_URING=$setting "$work/$version/bin/python" "$work/look.py")
    fi
    echo "uvloop $version, UV_USE_IO_URING $setting: $seen io_uring open, expected $expected"
    [ "$seen" = "$expected" ] || status=1
  done
done
exit $status
