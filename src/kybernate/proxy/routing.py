"""Where a request goes, from its head alone; OpenAI's paths need the body's `model` as well. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes

from kybernate.model.messages import Endpoint
from kybernate.proxy.host_allowlist import without_port

_OPENAI: Final = b"/v1"
_SLASHES: Final = b"/v1//"


class Page(enum.Enum):
    """What the activator answers itself."""

    ALIVE = enum.auto()
    READY = enum.auto()
    MODELS = enum.auto()


class ByBody(enum.Enum):
    """The body's `model` decides."""

    TOKEN = enum.auto()


BY_BODY: Final = ByBody.TOKEN

_PAGES: Final = {b"/health": Page.ALIVE, b"/healthz": Page.ALIVE, b"/ready": Page.READY, b"/readyz": Page.READY}


@dataclass(frozen=True, slots=True)
class OneModel:
    """The page of one model, `/v1/models/NAME`. Names of repositories have a slash, which clients encode or not."""

    name: str | None
    """None: what is there is no text."""


Route = Endpoint | Page | ByBody | OneModel | None


class Routes:
    """Made anew for each configuration."""

    def __init__(self, endpoints: tuple[Endpoint, ...]) -> None:
        self.endpoints = endpoints
        self._names = {name: endpoint for endpoint in endpoints for name in (*endpoint.names, endpoint.model)}
        self._hosts = {host.lower().encode(): endpoint for endpoint in endpoints for host in endpoint.hosts}
        paths = [(path.rstrip("/").encode(), endpoint) for endpoint in endpoints for path in endpoint.paths]
        self._paths = sorted(paths, key=lambda item: -len(item[0]))

    def by_name(self, name: str) -> Endpoint | None:
        return self._names.get(name)

    def of(self, method: bytes, path: bytes, host: bytes) -> Route:
        """A host of its own wins, then the longest prefix; ours are prefixes like any other. None: nobody's."""
        if self._hosts and (found := self._hosts.get(without_port(host).lower())):
            return found
        shortest = len(_OPENAI) if path in _PAGES or (path.startswith(_OPENAI) and _is_below(path, _OPENAI)) else -1
        for prefix, endpoint in self._paths:
            if len(prefix) < shortest:
                break
            if path.startswith(prefix) and _is_below(path, prefix):
                return endpoint
        return _own(method, path)


def _own(method: bytes, path: bytes) -> Route:
    if path in _PAGES:
        return _PAGES[path]
    if not _is_below(path, _OPENAI):
        return None
    if method in (b"GET", b"HEAD"):
        if path == b"/v1/models":
            return Page.MODELS
        if path.startswith(b"/v1/models/"):
            return OneModel(text_of(path[len(b"/v1/models/") :]))
        return None
    return BY_BODY if method == b"POST" and not path.startswith(_SLASHES) else None


def text_of(part: bytes) -> str | None:
    """Of a path, which is percent-encoded UTF-8. None: it isn't."""
    try:
        return unquote_to_bytes(part).decode()
    except UnicodeDecodeError:
        return None


def is_openais(path: bytes) -> bool:
    return _is_below(path, _OPENAI)


def _is_below(path: bytes, prefix: bytes) -> bool:
    return path.startswith(prefix) and (len(path) == len(prefix) or path[len(prefix)] == 0x2F)
