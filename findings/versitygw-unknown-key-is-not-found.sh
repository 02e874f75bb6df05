#!/usr/bin/env bash
# versitygw 1.7.0 answers an unknown access key id with 404, so obstore 0.12.1 reports an object that exists as not found.
#
# Expected: Amazon's S3 answers `InvalidAccessKeyId` with 403, and clients tell "not allowed" from "not there" by the status.
# Seen:     versitygw answers 404 with the code InvalidAccessKeyId. A HEAD request has no body, so there the code is invisible:
#           obstore raises FileNotFoundError for `head`, as for an object that is missing, and for `get` too.
# Why it matters here: whoever takes "not found" for "this copy is gone" forgets stored data because a key was rotated. Look at the
# body's code before believing a 404, and ask again by a listing after a HEAD.
#
# Needs: Go 1.26 or newer, Python 3.11 or newer with venv; builds the server, some minutes the first time. Exit 0: as stated; 1: changed.
set -euo pipefail
work=$(mktemp -d); server=
trap 'if [ -n "$server" ]; then kill "$server" 2>/dev/null; wait "$server" 2>/dev/null || true; fi; rm -rf "$work"' EXIT
PATH=$PATH:/usr/local/go/bin
CGO_ENABLED=0 GOBIN=$work/bin GOFLAGS=-mod=mod go install "github.com/versity/versitygw/cmd/versitygw@v1.7.0" >"$work/build.log" 2>&1 || {
  tail -3 "$work/build.log" >&2; exit 2; }
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check obstore==0.12.1
mkdir -p "$work/buckets/one"
port=$("$work/venv/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$work/bin/versitygw" --port "127.0.0.1:$port" --access known --secret not-a-secret --quiet posix "$work/buckets" >"$work/log" 2>&1 &
server=$!
"$work/venv/bin/python" - "$port" <<'PY'
import sys
import time

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

where = {"endpoint": f"http://127.0.0.1:{sys.argv[1]}", "virtual_hosted_style_request": False, "region": "us-east-1"}
once = {"max_retries": 0}


def store(key: str) -> S3Store:
    options = {"allow_http": True}
    return S3Store("one", access_key_id=key, secret_access_key="not-a-secret", client_options=options, retry_config=once, **where)


for _ in range(100):
    try:
        obstore.put(store("known"), "thing", b"content")
        break
    except BaseError:
        time.sleep(0.1)
assert bytes(obstore.get(store("known"), "thing").bytes()) == b"content"
seen = {}
for what in ("head", "get"):
    try:
        getattr(obstore, what)(store("unknown"), "thing")
        seen[what] = "no error"
    except Exception as error:
        seen[what] = type(error).__name__
        print(f"{what} with an unknown key id: {seen[what]}: {' '.join(str(error).split())[:160]}")
sys.exit(seen != {"head": "FileNotFoundError", "get": "FileNotFoundError"})
PY
