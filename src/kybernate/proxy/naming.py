"""The `model` that a request's body names, found without building the rest of it; and put in place where another name is wanted."""

from __future__ import annotations

import re
from typing import Final

import msgspec

_BOUNDARY = re.compile(rb"""multipart/form-data;.*?boundary=(?:"([^"\r\n]{1,70})"|([^\s;"]{1,70}))""", re.IGNORECASE)
_NAME_IS_MODEL = re.compile(
    rb"""(?i:content-disposition):[^;]{1,64};(?:.*;)?[ \t]*(?i:name)=(?:"model"|model)[ \t]*(?:;|$)"""
)
_FORM_NAME_MAX: Final = 1024
_FORM_HEAD_MAX: Final = 2048
_FORM_PARTS_MAX: Final = 256
"""A form of OpenAI's has some ten fields. Who sends thousands wants the looking to take long."""
_NESTED: Final = "the body is no JSON object with a model: it is nested too deeply"


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
    except RecursionError:
        raise BadName(_NESTED) from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as e:
        raise BadName(f"the body is no JSON object with a model: {e}") from None
    if name is None:
        raise BadName("you must provide a model parameter")
    return name


def with_model(body: bytes, name: str) -> bytes:
    """The JSON object with `model` replaced, every other value byte for byte as it was. Forms stay as they are."""
    try:
        parts = _parts.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return body
    parts["model"] = msgspec.Raw(msgspec.json.encode(name))
    return msgspec.json.encode(parts)


def _model_in_form(body: bytes, content_type: bytes) -> str:
    boundary = _BOUNDARY.match(content_type)
    if boundary is None:
        raise BadName("the form has no boundary")
    delimiter = b"\r\n--" + (boundary[1] or boundary[2])
    begin = len(delimiter) - 2 if body.startswith(delimiter[2:]) else _behind(body, delimiter, 0)
    name: bytes | None = None
    for _ in range(_FORM_PARTS_MAX):
        if begin < 0:
            break
        after = _behind(body, delimiter, begin)
        end = after - len(delimiter) if after >= 0 else len(body)
        separator = body.find(b"\r\n\r\n", begin, min(end, begin + _FORM_HEAD_MAX))
        if separator >= 0 and _is_of_model(body[begin:separator]):
            if name is not None:
                raise BadName("the form has two model fields")  # servers disagree which one counts
            name = body[separator + 4 : end]
        begin = after
    else:
        raise BadName(f"the form has more than {_FORM_PARTS_MAX} parts")
    if name is None or len(name) > _FORM_NAME_MAX:
        raise BadName("you must provide a model field")
    return name.decode(errors="replace")


def _behind(body: bytes, delimiter: bytes, start: int) -> int:
    """Where the next part begins; -1: there is none."""
    found = body.find(delimiter, start)
    return found + len(delimiter) if found >= 0 else -1


def _is_of_model(head: bytes) -> bool:
    return any(_NAME_IS_MODEL.match(line) for line in head.split(b"\r\n"))
