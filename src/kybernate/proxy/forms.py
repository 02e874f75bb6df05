"""The `model` field of a form (multipart/form-data), found while the form comes in: what follows it may be hours of speech.

A form is read as servers read it, leniently where they differ, and to its end: a second `model` would be the one that counts
for some of them. Pure.
"""

from __future__ import annotations

import enum
import re
from typing import Final

_KIND = re.compile(rb"multipart/form-data[ \t]*", re.IGNORECASE)
_PARAMETER = re.compile(rb"""[ \t]*;[ \t]*(?:([^\s=;"]+)=(?:"([^"\\\r\n]*)"|([^\s;"]*)))?[ \t]*""")
_BOUNDARY_MAX: Final = 70
_NAME_IS_MODEL = re.compile(
    rb"""(?i:content-disposition):[^;]{1,64};(?:.*;)?[ \t]*(?i:name)=(?:"model"|model)[ \t]*(?:;|$)"""
)
_LENGTH = re.compile(rb"(?im)^(content-length:[ \t]*)\d+")
_BEHIND_HEAD: Final = b"\r\n\r\n"
_NAME_MAX: Final = 1024
_HEAD_MAX: Final = 2048
_PARTS_MAX: Final = 256
"""A form of OpenAI's has some ten fields. Who sends thousands wants the looking to take long."""
_STEP: Final = 64 << 10


class BadForm(Exception):
    """It names no model. The text is for the client."""


class _At(enum.Enum):
    CONTENT = enum.auto()
    """Of a part that isn't the model, or in front of the first."""
    HEAD = enum.auto()
    VALUE = enum.auto()


class ModelField:
    """Fed with the form's bytes. `name` is the model as soon as its field has ended."""

    def __init__(self, content_type: bytes) -> None:
        """Raises BadForm."""
        self._delimiter = b"\r\n--" + _boundary(content_type)
        self.name: str | None = None
        self._head = (0, 0)
        """Where the head of its part lies, and its value behind it; counted from the form's beginning."""
        self._value = (0, 0)
        self._at = _At.CONTENT
        self._buffer = b"\r\n"  # the first delimiter needs no line end in front of it
        self._begin = -2
        """Where the buffer begins."""
        self._parts = 0

    def feed(self, data: bytes) -> None:
        """Raises BadForm."""
        self._buffer += data
        while self._step(final=False):
            pass

    def end(self) -> None:
        """That was all. Raises BadForm where no model is named."""
        while self._step(final=True):
            pass
        if self.name is None:
            raise BadForm("you must provide a model field")

    def with_name(self, form: bytes, name: str) -> bytes:
        """`form`, which holds the field in whole, with another model in it."""
        text = name.encode()
        (begin, separator), (value, end) = self._head, self._value
        head = _LENGTH.sub(rb"\g<1>%d" % len(text), form[begin:separator])
        return b"".join((form[:begin], head, form[separator:value], text, form[end:]))

    def _step(self, *, final: bool) -> bool:
        """Whether there may be another one."""
        match self._at:
            case _At.CONTENT:
                return self._pass()
            case _At.HEAD:
                return self._read_head(final=final)
            case _At.VALUE:
                return self._read_value(final=final)

    def _pass(self) -> bool:
        found = self._buffer.find(self._delimiter)
        if found < 0:
            self._drop(max(0, len(self._buffer) - len(self._delimiter) + 1))
            return False
        self._drop(found + len(self._delimiter))
        self._parts += 1
        if self._parts > _PARTS_MAX:
            raise BadForm(f"the form has more than {_PARTS_MAX} parts")
        self._at = _At.HEAD
        return True

    def _read_head(self, *, final: bool) -> bool:
        buffer, delimiter = self._buffer, self._delimiter
        separator = buffer.find(_BEHIND_HEAD, 0, _HEAD_MAX)
        enough = _HEAD_MAX if separator < 0 else separator + 2 + len(delimiter)
        next_part = buffer.find(delimiter, 0, enough)
        if next_part < 0 and len(buffer) < enough and not final:
            return False
        if separator < 0 and next_part < 0 and not final and not buffer.startswith(b"--"):
            raise BadForm(f"a part of the form has a head of more than {_HEAD_MAX} bytes")
        if separator < 0 or 0 <= next_part < separator + len(_BEHIND_HEAD):
            self._at = _At.CONTENT
            return True
        begin = self._begin
        if any(_NAME_IS_MODEL.match(line) for line in buffer[:separator].split(b"\r\n")):
            if self.name is not None:
                raise BadForm("the form has two model fields")  # servers disagree which one counts
            self._head = (begin, begin + separator)
            self._at = _At.VALUE
        else:
            self._at = _At.CONTENT
        self._drop(separator + len(_BEHIND_HEAD))
        return True

    def _read_value(self, *, final: bool) -> bool:
        found = self._buffer.find(self._delimiter, 0, _NAME_MAX + len(self._delimiter))
        if found < 0:
            if len(self._buffer) >= _NAME_MAX + len(self._delimiter):
                raise BadForm("you must provide a model field")
            if not final:
                return False
            found = len(self._buffer)
        self._value = (self._begin, self._begin + found)
        self.name = self._buffer[:found].decode(errors="replace")
        self._at = _At.CONTENT
        return True

    def _drop(self, size: int) -> None:
        self._buffer = self._buffer[size:]
        self._begin += size


def _boundary(content_type: bytes) -> bytes:
    """The one and only: of two, or of one that is cut off, servers would see other parts than we do.

    Raises BadForm.
    """
    kind = _KIND.match(content_type)
    at = 0 if kind is None else kind.end()
    found = []
    while at < len(content_type):
        parameter = _PARAMETER.match(content_type, at)
        if parameter is None:
            raise BadForm("the form's Content-Type can't be read")
        at = parameter.end()
        if (parameter[1] or b"").lower() == b"boundary":
            found.append(parameter[3] if parameter[2] is None else parameter[2])
    if kind is None or len(found) != 1 or not 0 < len(found[0]) <= _BOUNDARY_MAX:
        raise BadForm(f"the form needs one boundary, of {_BOUNDARY_MAX} bytes at most")
    return found[0]


def field_of(form: bytes, content_type: bytes) -> ModelField:
    """Of a form that is there in whole. Raises BadForm."""
    field = ModelField(content_type)
    for begin in range(0, len(form), _STEP):
        field.feed(form[begin : begin + _STEP])  # what is behind each part is moved, so it must be little
    field.end()
    return field
