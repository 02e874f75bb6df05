"""What a bucket's server says when it refuses: read out of obstore's text, and put into words a person can act on. Pure.

obstore sorts answers by their status alone: a server that answers an unknown key with 404 looks like one without the object.
The body's error code tells them apart.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

from kybernate.store.errors import NoBucket, TierRefused

_TEXT_MAX = 300

_ABSENT = frozenset({"NoSuchKey", "NoSuchObject", "BlobNotFound", "KeyNotFound", "NotFound", "NoSuchVersion"})
_NO_BUCKET = frozenset({"NoSuchBucket", "NoSuchContainer", "ContainerNotFound"})
_UNKNOWN_KEY = frozenset({"InvalidAccessKeyId", "XAdminUserNotFound", "NoSuchUser"})
_WRONG_SECRET = frozenset({"SignatureDoesNotMatch", "AuthenticationFailed"})
_OVER = frozenset({"ExpiredToken", "InvalidToken", "TokenRefreshRequired"})
_CLOCK = frozenset({"RequestTimeTooSkewed", "RequestExpired"})
_BUCKET_NAME = frozenset({"InvalidBucketName", "InvalidResourceName"})
_REGION = frozenset(
    {"AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException", "InvalidRegionName"}
)
_PASSING = frozenset(
    # 4xx of a request that arrived damaged, late or beside another one: the next try may well work.
    {
        "RequestTimeout",
        "IncompleteBody",
        "BadDigest",
        "XAmzContentSHA256Mismatch",
        "OperationAborted",
        "ConditionalRequestConflict",
    }
    | {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests", "ServerBusy"}
)
_PASSING_STATUSES = frozenset({408, 409, 425, 429})


@dataclass(frozen=True, slots=True)
class Answer:
    """A server's error; empty where the text has none."""

    status: int = 0
    """Of HTTP; 0: there was no answer."""
    code: str = ""
    message: str = ""
    region: str = ""
    """Where the bucket is, if the server says so."""

    @property
    def absent(self) -> bool:
        """The object isn't there; whether that is so where the body is missing (HEAD has none), nobody can say."""
        return self.status == 404 and self.code in _ABSENT

    @property
    def about_credentials(self) -> bool:
        """Others may do: a key that was replaced, a token that is over."""
        return self.status in (401, 403) or self.code in _UNKNOWN_KEY | _WRONG_SECRET | _OVER

    @property
    def lasting(self) -> bool:
        """Trying the same again makes no sense."""
        if self.about_credentials or self.code in _REGION:
            return True
        if not self.code or self.code in _PASSING or self.status in _PASSING_STATUSES:
            return False
        return 400 <= self.status < 500


def read(text: str) -> Answer:
    """Of an exception's text."""
    status = re.search(r"status code: (\d{3})", text)
    number = int(status[1]) if status else 0
    if "redirect without LOCATION" in text:  # obstore's word for S3's 301
        return Answer(status=number or 301, code="PermanentRedirect", message="the bucket is in another region")
    body = re.search(r"<Error>.*", text, re.DOTALL)
    if body is None:
        return Answer(status=number)
    return Answer(number, _element(body[0], "Code"), _element(body[0], "Message"), _element(body[0], "Region"))


def refusal(what: str, where: str, answer: Answer, text: str, *, hint: str | None = None) -> TierRefused:
    """The error for an answer that lasts.

    Args:
        text: what obstore said, one line, for servers that name no reason.
        hint: what to do, where that isn't what the answer calls for.
    """
    said = f"{answer.code}: {answer.message}" if answer.message else answer.code or text
    kind = NoBucket if answer.code in _NO_BUCKET else TierRefused
    begin = f"there is no bucket at {where}, so can't {what}" if kind is NoBucket else f"{where} refuses to {what}"
    return kind(f"{begin}: {said[:_TEXT_MAX]}", hint=hint or _hint(answer), where=where)


def _hint(answer: Answer) -> str:
    code = answer.code
    if code in _NO_BUCKET:
        return "create it, or correct agent.store.object.url"
    if code in _BUCKET_NAME:
        return "no bucket can have that name: correct agent.store.object.url"
    if code in _REGION:
        right = f"set agent.store.object.region to {answer.region}" if answer.region else "correct the region"
        return f"{right}; agent.store.object has region and endpoint"
    if code in _UNKNOWN_KEY:
        return "the server doesn't know this access_key_id: correct it in credentials_file, it is read again by itself"
    if code in _WRONG_SECRET:
        return "the secret doesn't belong to this access_key_id: correct it in credentials_file, it is read again by itself"
    if code in _OVER:
        return "renew the credentials: a changed credentials_file is read again by itself"
    if code in _CLOCK:
        return "this machine's clock is wrong: set it by NTP"
    if answer.about_credentials:
        return "check the credentials and the bucket's policy; a changed credentials_file is read again by itself"
    return "trying again won't help; `kybernate doctor` asks the server again"


def _element(body: str, name: str) -> str:
    found = re.search(rf"<{name}>([^<]*)</{name}>", body)
    return " ".join(html.unescape(found[1]).split())[:_TEXT_MAX] if found else ""
