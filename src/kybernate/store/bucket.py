"""Requests to a bucket through obstore: tried until they work or waiting makes no sense; credentials may change meanwhile.

When a connection is lost a request is made again, with growing pauses until `patience_s` is over. What the server refuses
is put into words by `refusals`.
"""

from __future__ import annotations

import logging
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar
from urllib.parse import urlsplit

import obstore
from obstore import exceptions as broken
from obstore.store import LocalStore, ObjectStore, from_url

from kybernate.model.errors import BadInput
from kybernate.store import refusals
from kybernate.store.errors import Damaged, TierAway
from kybernate.store.media import Absent
from kybernate.store.progress import Cancel

log = logging.getLogger(__name__)

T = TypeVar("T")

_SCHEMES = ("s3", "gs", "az", "azure", "file")
_BULK_PATIENCE = 5
"""A request that carries much may take so many times as long as another before it counts as dead: networks may be slow."""
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
_TEXT_MAX = 300
_NEVER = Cancel()


class Credentials(Protocol):
    """Options that may change while a place is in use."""

    def current(self, *, anew: bool = False) -> Mapping[str, Any]:
        """As they are now; with `anew` read even if they don't seem to have changed.

        Raises BadInput where they can't be read. Thread-safe.
        """
        ...


class Taken(Exception):
    """There is an object of that key already."""


@dataclass(frozen=True, slots=True)
class _Clients:
    """What talks to the server, and what it was made with."""

    credentials: Mapping[str, Any] = field(repr=False)
    small: ObjectStore
    bulk: ObjectStore
    """For requests that carry much."""


class Bucket:
    """See the module. Thread-safe."""

    def __init__(
        self, url: str, options: Mapping[str, Any], credentials: Credentials | None, patience_s: float
    ) -> None:
        """As `ObjectMedium`. Raises BadInput: not such a URL, or an option nobody knows."""
        self.where = url
        self._patience_s = patience_s
        self._options = dict(options)
        self._credentials = credentials
        self._renewing = threading.Lock()
        self._clients = self._connect({} if credentials is None else credentials.current())

    @property
    def small(self) -> ObjectStore:
        """For requests that carry little."""
        return self._renewed().small

    @property
    def bulk(self) -> ObjectStore:
        """For requests that carry much."""
        return self._renewed().bulk

    def attempt(self, what: str, request: Callable[[], T], cancel: Cancel = _NEVER) -> T:
        """A request, again and again with growing pauses until it works, or waiting longer makes no sense.

        Args:
            what: is attempted, as in "can't ...".

        Raises:
            Absent, Taken: there is no such object, or one that shall not be replaced.
            BadInput: a key or option that can't be. Damaged: less there than asked for.
            TierAway: no answer within the patience; TierRefused where the answer is no.
            Cancelled.
        """
        deadline = time.monotonic() + self._patience_s
        pause = _FIRST_PAUSE_S
        while True:
            cancel.check(f"{what} in {self.where}")
            used = self._clients
            try:
                return request()
            except (broken.AlreadyExistsError, broken.PreconditionError) as e:
                raise Taken(what) from e
            except (broken.InvalidPathError, broken.NotSupportedError, broken.UnknownConfigurationKeyError) as e:
                raise BadInput(f"can't {what} in {self.where}: {_short(e)}") from e
            except (broken.BaseError, OSError) as e:
                answer = self._answer(e)
                if answer.absent or (_not_found(e) and not answer.code):
                    raise Absent(what) from e
                if answer.code == "InvalidRange" or "InvalidRange" in str(e):
                    raise Damaged(f"can't {what} in {self.where}: it is cut off") from e
                if answer.about_credentials and self._renewed_since(used, what, answer):
                    continue
                if answer.lasting or isinstance(e, broken.PermissionDeniedError | broken.UnauthenticatedError):
                    raise refusals.refusal(what, self.where, answer, _short(e)) from e
                if time.monotonic() + pause > deadline:
                    self._give_up(what, e)
            cancel.wait(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _answer(self, error: Exception) -> refusals.Answer:
        """What the server said. An answer to HEAD has no body: the reason is asked for by a listing, which has one."""
        answer = refusals.read(str(error))
        if not answer.code and "performing HEAD" in str(error):
            try:
                obstore.list_with_delimiter(self._clients.small, "reason")
            except (broken.BaseError, OSError) as e:
                return refusals.read(str(e))
        return answer

    # -- credentials -------------------------------------------------------------------------------------------------

    def _connect(self, credentials: Mapping[str, Any]) -> _Clients:
        options = {**self._options, **credentials}
        return _Clients(
            credentials,
            small=_store_of(self.where, options, self._patience_s, timeout_s=self._patience_s),
            bulk=_store_of(self.where, options, self._patience_s, timeout_s=_BULK_PATIENCE * self._patience_s),
        )

    def _renewed(self) -> _Clients:
        """With the credentials of this moment; with the last good ones as long as those can't be read."""
        if self._credentials is not None:
            try:
                self._use(self._credentials.current())
            except BadInput as e:
                log.warning("%s: the credentials read last are used on: %s", self.where, e)
        return self._clients

    def _renewed_since(self, used: _Clients, what: str, answer: refusals.Answer) -> bool:
        """They were refused. Whether there are others by now, read by this thread or another one."""
        if self._credentials is None:
            return False
        try:
            return self._use(self._credentials.current(anew=True)) or self._clients is not used
        except BadInput as e:
            raise refusals.refusal(what, self.where, answer, "", hint=str(e)) from e

    def _use(self, found: Mapping[str, Any]) -> bool:
        with self._renewing:
            if found == self._clients.credentials:
                return False
            self._clients = self._connect(found)
            log.info("%s: its credentials have changed, and are used from now on", self.where)
            return True

    def _give_up(self, what: str, error: Exception) -> NoReturn:
        raise TierAway(
            f"can't {what} in {self.where}, tried for {self._patience_s:g} s: {_short(error)}",
            hint="try again later",
            where=self.where,
        ) from error


def _store_of(url: str, options: dict[str, Any], patience_s: float, *, timeout_s: float) -> ObjectStore:
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES or ".." in parts.path.split("/") or parts.query or parts.fragment:
        raise BadInput(
            f"bad URL {url[:200]!r} for a tier",
            hint=f"use one that begins with {', '.join(s + '://' for s in _SCHEMES[:4])}",
        )
    if parts.username or parts.password:
        raise BadInput("a URL with credentials in it for a tier", hint="give them in the environment or as options")
    if parts.scheme == "file":
        directory = Path(parts.path)
        if options or parts.netloc or not directory.is_absolute():
            raise BadInput(f"bad URL {url[:200]!r} for a tier", hint="use file:///an/absolute/path, without options")
        if not directory.is_dir():
            raise BadInput(f"there is no directory {directory}", hint="create it, or mount what should be there")
        return LocalStore(directory)
    if not parts.netloc:
        raise BadInput(f"bad URL {url[:200]!r} for a tier", hint="name a bucket: s3://bucket/prefix")
    allow_http = str(options.get("endpoint", "")).startswith("http://")
    make: Any = from_url  # its overloads ask for a type of options that depends on the URL
    try:
        store: ObjectStore = make(
            url,
            config=options,
            client_options={
                "timeout": timedelta(seconds=timeout_s),
                "connect_timeout": timedelta(seconds=min(5.0, patience_s)),
                "allow_http": allow_http,
            },
            # Connections that break at once are tried again inside; what lasts is this module's business.
            retry_config={"max_retries": 2, "retry_timeout": timedelta(seconds=min(10.0, patience_s))},
        )
    except (broken.BaseError, ValueError, TypeError) as e:
        raise BadInput(f"can't use {url[:200]} as a tier: {_short(e)}") from e
    return store


def _not_found(error: Exception) -> bool:
    return isinstance(error, FileNotFoundError | broken.NotFoundError)


def _short(error: Exception) -> str:
    """One line that is the same for the same cause, without what may be secret: URLs are cut off at their query."""
    text = " ".join(str(error).split("Debug source")[0].split("<?xml")[0].split())
    return re.sub(r"\?[^\s)]*| in [0-9.]+(ns|µs|ms|s)\b", "", text).rstrip(" :-")[:_TEXT_MAX]
