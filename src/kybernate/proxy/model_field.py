"""The `model` that a request's JSON names, found without building the rest of it; and put in place where another name is wanted."""

from __future__ import annotations

from typing import Final

import msgspec

_NESTED: Final = "the body is no JSON object with a model: it is nested too deeply"


class BadName(Exception):
    """The body names no model. The text is for the client."""


class _Named(msgspec.Struct):
    model: str | None = None


class _Streaming(msgspec.Struct):
    stream: bool = False


_decoder = msgspec.json.Decoder(_Named)
_streaming = msgspec.json.Decoder(_Streaming)
_parts = msgspec.json.Decoder(dict[str, msgspec.Raw])


def model_in(body: bytes) -> str:
    """Raises BadName."""
    try:
        name = _decoder.decode(body).model
    except RecursionError:
        raise BadName(_NESTED) from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as e:
        raise BadName(f"the body is no JSON object with a model: {e}") from None
    if name is None:
        raise BadName("you must provide a model parameter")
    return name


def wants_events(body: bytes) -> bool:
    """Whether it asks for its answer as a stream of events."""
    try:
        return _streaming.decode(body).stream
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False


def with_model(body: bytes, name: str) -> bytes:
    """The JSON object with `model` replaced, every other value byte for byte as it was."""
    try:
        parts = _parts.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return body
    parts["model"] = msgspec.Raw(msgspec.json.encode(name))
    return msgspec.json.encode(parts)
