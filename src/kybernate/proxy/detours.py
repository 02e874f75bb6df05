"""What else a path may mean than OpenAI's: slashes of a base URL, `/upstream/NAME/...`, models named elsewhere. Pure.

Only what nobody else answers comes here, so that none of it is on the way of other requests. The target that is returned is
what was decided on and what the server sees.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, unquote_plus

from kybernate.model.messages import Endpoint
from kybernate.proxy.heads import RequestHead
from kybernate.proxy.routing import Routes, text_of

_SLASHES = re.compile(rb"/+(?:v1/+)?")
_UPSTREAM: Final = b"/upstream/"
_NAME_PARTS_MAX: Final = 8
_PARAMETERS_MAX: Final = 256
"""Nobody sends more on purpose, and to look through what fits into a head takes a tenth of a second."""


@dataclass(frozen=True, slots=True)
class ToModel:
    """To this model's server, with this target."""

    endpoint: Endpoint
    name: str
    """By which it was asked for."""
    target: bytes


@dataclass(frozen=True, slots=True)
class WithSlash:
    """To be asked for again with a slash behind it: the relative links of a page wouldn't lead to its server else."""

    endpoint: Endpoint
    name: str
    target: bytes


@dataclass(frozen=True, slots=True)
class ByItsBody:
    """The body may name a model."""


@dataclass(frozen=True, slots=True)
class NoModel:
    """None of that name."""

    name: str


@dataclass(frozen=True, slots=True)
class BadQuery:
    """It can't be said which model it names."""

    why: str


Detour = ToModel | WithSlash | ByItsBody | NoModel | BadQuery | None


def without_slashes(target: bytes) -> bytes:
    """A base URL may end in a slash, and what is put behind it begins with one: `//v1/...`, `/v1//...`."""
    begin = _SLASHES.match(target)
    if begin is None:
        return target
    return (b"/v1/" if b"v1" in begin[0] else b"/") + target[begin.end() :]


def detour(routes: Routes, head: RequestHead) -> Detour:
    """None: it names no model."""
    path, _, query = head.target.partition(b"?")
    if path.startswith(_UPSTREAM):
        return _upstream(routes, head.method, path, query)
    if query.count(b"&") >= _PARAMETERS_MAX:
        return BadQuery(f"the query has more than {_PARAMETERS_MAX} parameters")
    names = [value for key, value in _parameters(query) if key == b"model"]
    if not names:
        return ByItsBody() if head.method == b"POST" and head.has_body else None
    if len(names) > 1:
        return BadQuery("the query names two models")  # servers disagree which one counts
    name = unquote_plus(names[0].decode("latin-1"), errors="replace")
    endpoint = routes.by_name(name)
    if endpoint is None:
        return NoModel(name)
    wanted = endpoint.rewrite_model
    if wanted is None or wanted == name:
        return ToModel(endpoint, name, head.target)
    return ToModel(endpoint, name, path + b"?" + _with_model(query, wanted))


def _upstream(routes: Routes, method: bytes, path: bytes, query: bytes) -> Detour:
    """The longest name wins: those of repositories have a slash in them, encoded or not."""
    parts = path[len(_UPSTREAM) :].split(b"/")
    behind = b"?" + query if query else b""
    for count in range(min(len(parts), _NAME_PARTS_MAX), 0, -1):
        name = text_of(b"/".join(parts[:count]))
        endpoint = None if name is None else routes.by_name(name)
        if name is None or endpoint is None:
            continue
        if count == len(parts) and method in (b"GET", b"HEAD"):
            return WithSlash(endpoint, name, path + b"/" + behind)
        return ToModel(endpoint, name, b"/" + b"/".join(parts[count:]).lstrip(b"/") + behind)
    return NoModel(text_of(parts[0]) or "")


def _parameters(query: bytes) -> list[tuple[bytes, bytes]]:
    """Names decoded, values as they are."""
    found = []
    for part in query.split(b"&"):
        key, _, value = part.partition(b"=")
        found.append((unquote_plus(key.decode("latin-1")).encode(), value))
    return found


def _with_model(query: bytes, name: str) -> bytes:
    text = b"model=" + quote(name, safe="").encode()
    parts = zip(query.split(b"&"), _parameters(query), strict=True)
    return b"&".join(text if key == b"model" else part for part, (key, _) in parts)
