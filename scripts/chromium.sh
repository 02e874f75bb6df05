#!/usr/bin/env bash
# chromium.sh: makes sure there is a Chromium for the tests of the dashboard; prints its path. Idempotent.
#
# As root on Debian, apt installs the distribution's. Elsewhere one line says what to install, and those tests are left out; the
# exit status is still 0.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh

found() { command -v chromium || command -v chromium-browser || command -v google-chrome-stable; }
left_out() { say "no Chromium, so the dashboard's tests are left out: $*"; exit 0; }

found && exit 0
command -v apt-get >/dev/null || left_out "install your distribution's package 'chromium'"
[ "$(id -u)" = 0 ] || left_out "as root: apt-get install chromium"

mkdir -p .cache
exec 9>.cache/chromium.lock
flock 9
found && exit 0
say "installing Debian's Chromium for the tests of the dashboard"
# On Ubuntu the package is a stub that wants snapd; what it leaves is looked at below.
{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-liberation; } \
  >/dev/null 2>&1 || left_out "apt-get could not install chromium"
found || left_out "this distribution's package brings no browser"
