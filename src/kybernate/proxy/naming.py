"""The `model` that a request's body names, found without building the rest of it; and put in place where another name is wanted."""

from __future__ import annotations

import re
from typing import Final

import msgspec

_BOUNDARY = re.compile(rb"""multipart/form-data;.*?boundary=(?:"([^"\r\n]{1,70})"|([^\s;"]{1,70}))""", re.IGNORECASE)
_NAME_IS_MODEL = re.compile(
    rb"""content-disposition:[^\r\n]*;\s*name=(?:"model"|model)(?=[\s;]|$)""", re.IGNORECASE | re.MULTILINE
)
_FORM_NAME_MAX: Final = 1024


class BadName(Exception):
    """The body names no model. The text is for the client."""


class _Named(msgspec.Struct):
    model: str | None = None


_decoder = msgspec.json.Decoder(_Named)
_parts = msgspec.json.Decoder(dict[str, msgspec.Raw])


def model_in(body: bytes, content_type: bytes) -> str:
    """Raises BadName."""
    if content_type[:10].lower() == b"multipart/":
        return _model_in_form(body, content_type)
    try:
        name = _decoder.decode(body).model
    except (msgspec.MsgspecError, UnicodeDecodeError) as e:
        raise BadName(f"the body is no JSON object with a model: {e}") from None
    if name is None:
        raise BadName("you must provide a model parameter")
    return name


def with_model(body: bytes, name: str) -> bytes:
    """The JSON object with `model` replaced, every other value byte for byte as it was. Forms stay as they are."""
    try:
        parts = _parts.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return body
    parts["model"] = msgspec.Raw(msgspec.json.encode(name))
    return msgspec.json.encode(parts)


def _model_in_form(body: bytes, content_type: bytes) -> str:
    boundary = _BOUNDARY.match(content_type)
    if boundary is None:
        raise BadName("the form has no boundary")
    for part in body.split(b"--" + (boundary[1] or boundary[2])):
        head, separator, value = part.partition(b"\r\n\r\n")
        if separator and len(head) < _FORM_NAME_MAX * 4 and _NAME_IS_MODEL.search(head):
            name = value.removesuffix(b"\r\n")
            if len(name) > _FORM_NAME_MAX:
                break
            return name.decode(errors="replace")
    raise BadName("you must provide a model field")
