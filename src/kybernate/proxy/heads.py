"""Heads of HTTP/1 messages: parsed strictly, and written anew for the other side.

llhttp, in its strict mode, parses; what its strictness leaves open is refused here, because two parsers that disagree about where a
message ends are how requests are smuggled. What is passed on is never the text that came but the parsed fields, with
exactly one statement of the body's length. HTTP/2 isn't spoken.
"""

from __future__ import annotations

import re
from typing import Final

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser, HttpResponseParser

HEAD_MAX: Final = 64 << 10
"""Bytes of a head. Cookies and tokens of 8 KiB are seen; nobody sends more than this on purpose."""
FIELDS_MAX: Final = 128
_LENGTH_MAX_DIGITS: Final = 18

_TARGET = re.compile(rb"/[\x21\x22\x24-\x7e]*|\*")
_ABSOLUTE = re.compile(rb"https?://([A-Za-z0-9.\-_:\[\]%]+)(/[\x21\x22\x24-\x7e]*)?", re.IGNORECASE)
_DOTS = re.compile(rb"(?:/|%2f|%5c|\\)(?:\.|%2e){1,2}(?:[/;\\]|%2f|%5c|%3b|$)", re.IGNORECASE)
_HOST = re.compile(rb"[A-Za-z0-9.\-_:\[\]%]*")
_TOKENS = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+(?:[ \t]*,[ \t]*[!#$%&'*+\-.^_`|~0-9A-Za-z]+)*")

_SINGLE = frozenset(
    (
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"content-type",
        b"authorization",
        b"expect",
        b"x-api-key",
        b"upgrade",
    )
)
"""Given twice, nobody can say which one counts."""
_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"transfer-encoding",
        b"content-length",
        b"upgrade",
    )
)
"""Of this connection only, or stated anew."""
_OURS = frozenset((b"host", b"expect", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-request-id"))
_NAMED = (
    _SINGLE
    | _HOP
    | _OURS
    | {
        b"access-control-request-headers",
        b"access-control-request-method",
        b"content-encoding",
        b"origin",
        b"sec-fetch-dest",
        b"sec-fetch-mode",
        b"sec-fetch-site",
        b"traceparent",
        b"x-kybernate-max-wait",
        b"x-kybernate-wait-ms",
        b"x-kybernate-swap-ms",
        b"x-kybernate-tier",
    }
)
_DROPPED = frozenset((b"x-kybernate-max-wait", b"x-kybernate-wait-ms", b"x-kybernate-swap-ms", b"x-kybernate-tier"))
_NOT_TO_MODEL = _HOP | _OURS | _DROPPED
_NOT_TO_CLIENT = _HOP | _DROPPED | {b"x-request-id"}
_NEVER_LISTED = frozenset((b"host", b"content-type", b"authorization", b"x-forwarded-for", b"x-forwarded-proto"))
"""Fields that a client can't have removed by listing them in Connection."""


class BadHead(Exception):
    """A head that isn't passed on. `status` is the answer to it."""

    def __init__(self, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


class RequestHead:
    """What a client asks. `fields` are as they came, names in lower case; `named` those of them that mean something to us."""

    __slots__ = ("chunked", "fields", "keep_alive", "length", "method", "minor", "named", "target", "upgrade")

    def __init__(self) -> None:
        self.fields: list[tuple[bytes, bytes]] = []
        self.named: dict[bytes, bytes] = {}
        self.method = b""
        self.target = b""
        self.minor = 1
        self.length: int | None = None
        self.chunked = False
        self.keep_alive = True
        self.upgrade: bytes | None = None
        """The protocol asked for, in lower case."""

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), value.strip(b" \t")))

    def aim_at(self, target: bytes) -> None:
        """It is asked for this instead: what is decided on is what its server sees."""
        self.target = target

    @property
    def path(self) -> bytes:
        return self.target.partition(b"?")[0]

    @property
    def has_body(self) -> bool:
        return self.chunked or bool(self.length)


class ResponseHead:
    """What a model's server answers."""

    __slots__ = ("chunked", "fields", "keep_alive", "length", "minor", "named", "reason", "status")

    def __init__(self) -> None:
        self.fields: list[tuple[bytes, bytes]] = []
        self.named: dict[bytes, bytes] = {}
        self.status = 0
        self.reason = b""
        self.minor = 1
        self.length: int | None = None
        self.chunked = False
        self.keep_alive = True

    def on_status(self, reason: bytes) -> None:
        self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value.strip(b" \t")))


def parse_request(raw: bytes) -> RequestHead:
    """`raw` is one head with its empty line.

    Raises:
        BadHead: it is not to be passed on.
    """
    _check_lines(raw)
    head = RequestHead()
    parser = HttpRequestParser(head)
    try:
        parser.feed_data(raw)
    except HttpParserUpgrade:
        pass
    except HttpParserError as e:
        raise BadHead(f"this is no HTTP request: {str(e) or 'malformed'}") from None
    head.method = parser.get_method()
    start = b"%b %b HTTP/1." % (head.method, head.target)
    if not raw.startswith(start) or raw[len(start) + 1 : len(start) + 3] != b"\r\n":
        raise BadHead("the request line must be METHOD, TARGET and HTTP/1.1, with single spaces")
    head.minor = raw[len(start)] - 48
    if head.minor not in (0, 1):
        raise BadHead("only HTTP/1.0 and HTTP/1.1 are spoken here", status=505)
    fields = head.fields
    if len(fields) > FIELDS_MAX:
        raise BadHead(f"more than {FIELDS_MAX} header fields", status=431)
    named = head.named
    for name, value in fields:
        if name in _NAMED:
            if name in named:
                if name in _SINGLE:
                    raise BadHead(f"{name.decode()} is given twice")
                value = named[name] + b", " + value
            named[name] = value
    _request_framing(head)
    _request_target(head)
    return head


def parse_response(raw: bytes) -> ResponseHead:
    """`raw` is one head with its empty line.

    Raises:
        BadHead: it is not to be passed on.
    """
    _check_lines(raw)
    head = ResponseHead()
    parser = HttpResponseParser(head)
    try:
        parser.feed_data(raw)
    except HttpParserUpgrade:
        pass
    except HttpParserError as e:
        raise BadHead(f"this is no HTTP answer: {str(e) or 'malformed'}", status=502) from None
    head.status = parser.get_status_code()
    head.minor = 0 if raw.startswith(b"HTTP/1.0") else 1
    if not 100 <= head.status <= 999 or not raw.startswith(b"HTTP/1."):
        raise BadHead("an answer with an impossible status", status=502)
    if len(head.fields) > FIELDS_MAX:
        raise BadHead(f"an answer with more than {FIELDS_MAX} header fields", status=502)
    named = head.named
    for name, value in head.fields:
        lower = name.lower()
        if lower in _NAMED:
            if lower in named:
                if lower in (b"content-length", b"transfer-encoding"):
                    raise BadHead(f"an answer with {lower.decode()} given twice", status=502)
                value = named[lower] + b", " + value
            named[lower] = value
    head.length, head.chunked = _framing(named, status=502)
    connection = named.get(b"connection", b"").lower()
    head.keep_alive = b"close" not in connection if head.minor else b"keep-alive" in connection
    return head


def _check_lines(raw: bytes) -> None:
    lines = raw.count(b"\r\n")
    if raw.count(b"\n") != lines or raw.count(b"\r") != lines or b"\0" in raw:
        raise BadHead("a head with a bare line feed, a bare carriage return or a NUL")


def _framing(named: dict[bytes, bytes], *, status: int) -> tuple[int | None, bool]:
    length, coding = named.get(b"content-length"), named.get(b"transfer-encoding")
    if coding is not None:
        if length is not None:
            raise BadHead("Content-Length and Transfer-Encoding exclude each other", status=status)
        if coding.lower() != b"chunked":
            raise BadHead("the only Transfer-Encoding spoken here is chunked", status=501 if status == 400 else status)
        return None, True
    if length is None:
        return None, False
    if not length.isdigit() or len(length) > _LENGTH_MAX_DIGITS:
        raise BadHead("Content-Length is no number", status=status)
    return int(length), False


def _request_framing(head: RequestHead) -> None:
    named = head.named
    head.length, head.chunked = _framing(named, status=400)
    if head.chunked and not head.minor:
        raise BadHead("HTTP/1.0 has no Transfer-Encoding")
    connection = named.get(b"connection")
    if connection is None:
        head.keep_alive = head.minor == 1
        return
    connection = connection.lower()
    if connection and not _TOKENS.fullmatch(connection):
        raise BadHead("Connection is no list of names")
    head.keep_alive = b"close" not in connection if head.minor else b"keep-alive" in connection
    if b"upgrade" in connection and head.minor:
        protocol = named.get(b"upgrade", b"").lower()
        # h2c would hide every further request from us.
        if protocol and b"h2c" not in protocol and not head.has_body:
            head.upgrade = protocol


def _request_target(head: RequestHead) -> None:
    if head.method in (b"CONNECT", b"TRACE"):
        raise BadHead(f"{head.method.decode()} is not answered here", status=405)
    host = head.named.get(b"host")
    if host is None:
        if head.minor:
            raise BadHead("HTTP/1.1 needs a Host")
    elif not _HOST.fullmatch(host):
        raise BadHead("Host is no name and port")
    if absolute := _ABSOLUTE.fullmatch(head.target):
        # The target names the host; whoever reads the Host field must see the same.
        head.named[b"host"] = absolute[1]
        head.target = absolute[2] or b"/"
    elif not _TARGET.fullmatch(head.target) or (head.target == b"*" and head.method != b"OPTIONS"):
        raise BadHead("the target must be a path")
    if (b"." in head.target or b"%" in head.target) and _DOTS.search(head.path):
        # We route by the text as it is; a server that takes such parts away would answer for another path.
        raise BadHead("a path with . or .. as a part of it")


def request_for_upstream(
    head: RequestHead,
    *,
    client: bytes,
    secure: bool,
    request_id: bytes,
    drop: frozenset[bytes] = frozenset(),
    length: int | None = None,
    traceparent: bytes | None = None,
) -> bytes:
    """The head as the model's server sees it.

    `client` is the peer's address. `drop` are further fields not passed on. `length` replaces the framing that came, where the
    body was read whole. `traceparent` replaces the client's.
    """
    named = head.named
    gone = drop
    if connection := named.get(b"connection"):
        listed = {token.strip() for token in connection.lower().split(b",")}
        if not listed <= {b"close", b"keep-alive", b"upgrade", b"te"}:
            gone = gone | (listed - _NEVER_LISTED)
    lines = [b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (head.method, head.target, named.get(b"host", b""))]
    for field in head.fields:
        name = field[0]
        if name in _NOT_TO_MODEL:
            continue
        if name in gone or (b"_" in name and name.replace(b"_", b"-") in _NAMED):
            continue  # CGI-like servers don't tell X_Forwarded_For from X-Forwarded-For
        if traceparent is not None and name == b"traceparent":
            continue
        lines.append(b"%b: %b\r\n" % field)
    earlier = named.get(b"x-forwarded-for")
    forwarded = b"%b, %b" % (earlier, client) if earlier else client
    lines.append(
        b"x-forwarded-for: %b\r\nx-forwarded-proto: %b\r\nx-request-id: %b\r\n"
        % (forwarded, b"https" if secure else b"http", request_id)
    )
    if traceparent is not None:
        lines.append(b"traceparent: %b\r\n" % traceparent)
    if b"host" in named:
        lines.append(b"x-forwarded-host: %b\r\n" % named[b"host"])
    if length is not None:
        lines.append(b"content-length: %d\r\n\r\n" % length)
        return b"".join(lines)
    if expect := named.get(b"expect"):
        lines.append(b"expect: %b\r\n" % expect)
    if head.upgrade is not None:
        lines.append(b"connection: upgrade\r\nupgrade: %b\r\n" % named[b"upgrade"])
    if head.chunked:
        lines.append(b"transfer-encoding: chunked\r\n\r\n")
    elif head.length is not None:
        lines.append(b"content-length: %d\r\n\r\n" % head.length)
    else:
        lines.append(b"\r\n")
    return b"".join(lines)


def without_cors(head: ResponseHead) -> None:
    """What the server says of other sites' pages is taken out: two answers to one question are none to a browser."""
    head.fields = [field for field in head.fields if not field[0].lower().startswith(b"access-control-")]


def response_for_client(
    head: ResponseHead, *, extra: bytes, dechunk: bool, close: bool, switching: bool, keep_alive: bool
) -> bytes:
    """The head as the client sees it.

    `extra` are whole lines of ours. `dechunk`: the body follows plainly, up to the connection's end.
    `switching`: the answer to an upgrade. `keep_alive`: to be said to a client that would close otherwise.
    """
    named = head.named
    gone: frozenset[bytes] = frozenset()
    if connection := named.get(b"connection"):
        gone = frozenset(token.strip() for token in connection.lower().split(b","))
    lines = [b"HTTP/1.1 %d %b\r\n" % (head.status, head.reason)]
    for field in head.fields:
        lower = field[0].lower()
        if lower in _NOT_TO_CLIENT or (gone and lower in gone):
            continue
        lines.append(b"%b: %b\r\n" % field)
    if switching:
        lines.append(b"connection: upgrade\r\nupgrade: %b\r\n" % named.get(b"upgrade", b""))
    elif head.length is not None and head.status >= 200 and head.status != 204:
        lines.append(b"content-length: %d\r\n" % head.length)
    if head.chunked and not dechunk:
        lines.append(b"transfer-encoding: chunked\r\n")
    if close:
        lines.append(b"connection: close\r\n")
    elif keep_alive:
        lines.append(b"connection: keep-alive\r\n")
    lines.append(extra)
    lines.append(b"\r\n")
    return b"".join(lines)
