"""dashboard and token: the way in over TCP, for whoever may read the agent's token."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from kybernate.cli.common import Common, print_json
from kybernate.model.errors import BadInput

_COMMON = Common()


def dashboard(*, common: Common = _COMMON) -> None:
    """Print the dashboard's address. It contains the token: treat it like a password."""
    url, secret = _way_in(common)
    address = f"{url}#token={quote(secret, safe='')}"
    print_json({"url": address}) if common.json else print(address)


def token(*, common: Common = _COMMON) -> None:
    """Print the token for requests over TCP: `Authorization: Bearer TOKEN`."""
    url, secret = _way_in(common)
    print_json({"url": url, "token": secret}) if common.json else print(secret)


def _way_in(common: Common) -> tuple[str, str]:
    with common.client() as client:
        node = client.node()
    if node.url is None or node.token_file is None:
        raise BadInput(
            "the agent doesn't listen on TCP",
            hint="set agent.api.listen, or start it with `kybernate up --listen 127.0.0.1:7070`",
        )
    try:
        return node.url, Path(node.token_file).read_text(encoding="ascii").strip()
    except OSError as e:
        raise BadInput(f"can't read {node.token_file}: {e.strerror}", hint="be root or the agent's user") from e
