"""What settings are made of: sizes, paths, names, durations that may be `off`, each checked at the edge."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from kybernate.model.addresses import host_and_port
from kybernate.model.errors import BadInput
from kybernate.model.quantities import parse_seconds, parse_size
from kybernate.model.types import CHUNK_BYTES, MIB
from kybernate.store.tenants import tenant_name


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, populate_by_name=True)


def _size(value: Any) -> int:
    try:
        return parse_size(value)
    except BadInput as e:
        raise ValueError(str(e)) from None


def _seconds(value: Any) -> float:
    try:
        return parse_seconds(value)
    except BadInput as e:
        raise ValueError(str(e)) from None


def _no_flag(value: Any) -> Any:
    """To Python `true` is 1: a port, for example, that nobody meant."""
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()} is no number")  # noqa: TRY004 - what pydantic takes for an answer
    return value


def whole_chunks(given: Any) -> int:
    value = _size(given)
    if value % CHUNK_BYTES:
        raise ValueError(f"must be a multiple of {CHUNK_BYTES // MIB} MiB")
    return value


def or_off(value: Any) -> Any:
    """YAML reads a bare `off` as false."""
    return None if value is False or value == "off" else value


def tenant_text(value: str) -> str:
    try:
        return tenant_name(value)
    except BadInput as e:
        raise ValueError(str(e)) from None


def tier_url(value: str) -> str:
    if not re.match(r"(s3|gs|az|azure)://[^/?#@]+|file:///[^?#]+", value):
        raise ValueError(
            "use s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://ACCOUNT/CONTAINER/PREFIX or file:///DIRECTORY"
        )
    return value


def server_url(value: str) -> str:
    if not re.match(r"https?://[^/]", value):
        raise ValueError("use http://HOST:PORT or https://HOST:PORT")
    if "@" in value.split("/")[2]:
        raise ValueError("no user or password in an address: addresses are shown, in lists of processes too")
    return value


def absolute(value: Path) -> Path:
    if not value.is_absolute() or ".." in value.parts:
        raise ValueError("use an absolute path without '..'")
    return value


NO_FLAG = BeforeValidator(_no_flag)
"""Of numbers, which `true` and `false` are not. After their limits, so that the schema has these."""
Size = Annotated[int, BeforeValidator(_size, json_schema_input_type=int | str)]
Sizes = Annotated[
    tuple[Size, ...],
    Field(min_length=1, max_length=64),
    BeforeValidator(
        lambda value: value if isinstance(value, list | tuple) else (value,),
        json_schema_input_type=int | str | list[int | str],
    ),
]
"""One size, or one for each GPU."""
AbsolutePath = Annotated[Path, AfterValidator(absolute)]
Seconds = Annotated[float, BeforeValidator(_seconds, json_schema_input_type=float | str)]
"""A time, with or without units; limits are added where it is used."""
Duration = Annotated[Seconds, Field(ge=0, le=10 * 365 * 86400)]
"""Seconds."""
DurationOrOff = Annotated[
    Annotated[Seconds, Field(gt=0, le=10 * 365 * 86400)] | None,
    BeforeValidator(or_off, json_schema_input_type=float | str | Literal[False]),
]
"""Seconds; None stands for `off`."""
WORKLOAD_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
WorkloadKey = Annotated[
    str,
    Field(pattern=WORKLOAD_PATTERN, description="a workload's name, a DNS label"),
]


def _command(value: Any) -> Any:
    """A text is split as a shell would, without one being asked."""
    if isinstance(value, str):
        try:
            value = tuple(shlex.split(value))
        except ValueError as e:
            raise ValueError(f"no command line: {e}") from None
    if isinstance(value, list | tuple):
        if not value:
            raise ValueError("no command to run")
        for word in value:
            if isinstance(word, str) and "\0" in word:
                raise ValueError("a command holds no NUL byte")
            if isinstance(word, bool | dict | list) or word is None:
                raise ValueError("a command is a list of words, or one text")
        return tuple(str(word) for word in value)
    raise ValueError("a command is a list of words, or one text")


Command = Annotated[tuple[str, ...], BeforeValidator(_command, json_schema_input_type=str | list[str | int | float])]
"""Program and arguments."""


def _texts(value: Any) -> Any:
    """`PORT: 8000` in an environment means the text."""
    if not isinstance(value, dict):
        return value
    return {
        key: str(each) if isinstance(each, int | float) and not isinstance(each, bool) else each
        for key, each in value.items()
    }


Environment = Annotated[
    dict[Annotated[str, Field(pattern=r"^[^=\x00]+$")], Annotated[str, Field(pattern=r"^[^\x00]*$")]],
    BeforeValidator(_texts, json_schema_input_type=dict[str, str | int | float]),
]


def url_path(value: str) -> str:
    if not re.fullmatch(r"/[!-~]*", value) or "?" in value or "#" in value:
        raise ValueError("use a path such as /health")
    return value


def path_prefix(value: str) -> str:
    cut = url_path(value).rstrip("/")
    if not cut:
        raise ValueError("the path / would take every request; leave it out, and use names or hosts")
    return cut


def host_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", value):
        raise ValueError("use a host name such as chat.example.org, without a port")
    return value.lower()


def origin(value: str) -> str:
    """As a browser sends it: scheme, host and port, where that isn't the scheme's own."""
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^\s/?#@*,]+", value, re.IGNORECASE) or not value.isascii():
        raise ValueError("use an origin such as https://chat.example.org or http://localhost:3000, without a path")
    lower = value.lower()
    for scheme, port in (("http://", ":80"), ("https://", ":443")):
        if lower.startswith(scheme):
            lower = lower.removesuffix(port)
    return lower


def model_alias(value: str) -> str:
    if not value or len(value) > 200 or any(character < " " for character in value):
        raise ValueError("use 1 to 200 printable characters")
    return value


def listen_address(value: Any) -> str:
    text = value if isinstance(value, str) else ""
    try:
        host_and_port(text)
    except BadInput as e:
        raise ValueError(e.message) from e  # pydantic makes its own errors of ValueErrors
    return text


UrlPath = Annotated[str, AfterValidator(url_path)]
PathPrefix = Annotated[str, AfterValidator(path_prefix)]
HostName = Annotated[str, AfterValidator(host_name)]
Origin = Annotated[str, AfterValidator(origin)]
ModelAlias = Annotated[str, AfterValidator(model_alias)]
ListenAddress = Annotated[str, BeforeValidator(listen_address, json_schema_input_type=str)]
