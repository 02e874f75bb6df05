"""A bucket whose server says no: said at once and in its own words, never taken for an object that isn't there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.store.rig import PLAIN, Slots, load, noise, save
from tests.store.server import ACCESS, SECRET, Proxy, Server, Unbuildable, options

from kybernate.agent.tiers.credentials import CredentialsFile
from kybernate.model.errors import BadInput
from kybernate.store import Catalog, ObjectMedium, Tier, TierAway, TierRefused, open_writer, refusals
from kybernate.store.media import Absent

ALL_PATIENCE_S = 3600.0
"""Who tries again for so long runs into the test's own limit."""

WRONG = {
    "access key": ({"access_key_id": "nobody"}, "XAdminUserNotFound", "access_key_id"),
    "secret": ({"secret_access_key": "wrong"}, "SignatureDoesNotMatch", "doesn't belong to this access_key_id"),
    "region": ({"region": "eu-west-1"}, "AuthorizationHeaderMalformed", "set agent.store.object.region to us-east-1"),
}


def medium(url: str, port: int, **settings: object) -> ObjectMedium:
    return ObjectMedium(url, options={**options(port), **settings}, patience_s=ALL_PATIENCE_S)


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_said_at_once_with_what_to_do(
    server: Server, proxy: Proxy, bucket: str, tmp_path: Path, wrong: str
) -> None:
    settings, code, hint = WRONG[wrong]
    book = Catalog(tmp_path / "c.db")
    with pytest.raises(TierRefused) as refused:
        Tier(medium(f"s3://{bucket}/x", proxy.port, **settings), book).open()
    book.close()
    assert code in refused.value.message
    assert hint in (refused.value.hint or "")
    assert "later" not in str(refused.value)
    assert refused.value.exit_status == 1
    assert proxy.connections < 5, "nothing is tried again"


@pytest.mark.parametrize("wrong", WRONG)
def test_no_object_seems_to_be_missing(server: Server, bucket: str, wrong: str) -> None:
    """What is thought to be gone from a bucket is thought to be lost."""
    good = medium(f"s3://{bucket}/x", server.port)
    assert good.create("there", b"content")
    bad = medium(f"s3://{bucket}/x", server.port, **WRONG[wrong][0])
    orders: dict[str, Callable[[], object]] = {
        "get": lambda: bad.get("there"),
        "create": lambda: bad.create("there", b"content"),
        "create another": lambda: bad.create("new", b"content"),
        "replace": lambda: bad.replace("there", b"other"),
        "delete": lambda: bad.delete("there"),
        "list": lambda: list(bad.entries("")),
        "tenants": bad.tenants,
        "size": lambda: bad.pack_size(PLAIN.tenant, "0" * 32),  # type: ignore[arg-type]
    }
    for order in orders.values():
        with pytest.raises(TierRefused, match=r"refuses to \w+"):
            order()
    assert good.get("there") == b"content"
    with pytest.raises(Absent):
        good.get("new")
    with pytest.raises(Absent):
        good.pack_size(PLAIN.tenant, "0" * 32)  # type: ignore[arg-type]


def test_a_bucket_that_does_not_exist(server: Server) -> None:
    for order in (lambda m: m.get("a"), lambda m: m.pack_size(PLAIN.tenant, "0" * 32), lambda m: m.delete("a")):
        with pytest.raises(TierRefused, match="there is no bucket at s3://nobody-made-this") as refused:
            order(medium("s3://nobody-made-this/x", server.port))
        assert refused.value.exit_status == 2
        assert "agent.store.object.url" in (refused.value.hint or "")


def test_a_name_that_no_bucket_can_have(server: Server) -> None:
    with pytest.raises(TierRefused, match="InvalidBucketName: The specified bucket is not valid"):
        medium("s3://Bad_Name/x", server.port).get("a")


# -- renewed credentials ---------------------------------------------------------------------------------------------------


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """Whose credentials change."""
    (tmp_path / "s3").mkdir()
    try:
        running = Server(tmp_path / "s3")
    except Unbuildable as e:
        pytest.skip(str(e))
    running.make_bucket("rotating")
    yield running
    running.close()


def write_credentials(path: Path, access: str, secret: str) -> None:
    """As tools that rotate secrets do: a new file in its place."""
    new = path.with_suffix(".new")
    new.touch(0o600)
    new.write_text(f"access_key_id: {access}\nsecret_access_key: {secret}\n")
    new.replace(path)


def test_renewed_credentials_are_used_without_a_restart(own_server: Server, tmp_path: Path) -> None:
    file = tmp_path / "credentials.yaml"
    write_credentials(file, ACCESS, SECRET)
    plain = {key: value for key, value in options(own_server.port).items() if "key" not in key}
    place = ObjectMedium(
        "s3://rotating/x", options=plain, credentials=CredentialsFile(file), patience_s=ALL_PATIENCE_S, threads=4
    )
    book = Catalog(tmp_path / "c.db")
    tier = Tier(place, book)
    tier.open()
    space = tier.space(PLAIN)
    save(space, "before", [noise(1), noise(2)])

    own_server.stop()
    own_server.start(secret="another-secret")
    with pytest.raises(TierRefused, match="SignatureDoesNotMatch") as refused:
        load(space, "before")
    assert "read again by itself" in (refused.value.hint or "")

    # Half a file, and one that is open to all: said, and what was read last isn't thrown away.
    file.write_text("access_key_id: [")
    with pytest.raises(TierRefused) as refused:
        load(space, "before")
    assert "no YAML" in (refused.value.hint or "")

    write_credentials(file, ACCESS, "another-secret")
    assert load(space, "before") == [noise(1), noise(2)]
    slots = Slots([noise(k) for k in range(12)])
    with open_writer(space, "after") as writer:  # several threads at once
        writer.add_extent(slots.views)
        writer.commit()
    assert load(space, "after") == slots.contents()
    tier.close()
    book.close()


def test_a_change_nobody_can_see_is_found_when_the_old_ones_are_refused(own_server: Server, tmp_path: Path) -> None:
    """Same size, same time, same file: clocks of file systems may be coarse."""
    import os

    file = tmp_path / "credentials.yaml"
    write_credentials(file, ACCESS, "secret-number-1")
    os.utime(file, (1, 1))
    own_server.stop()
    own_server.start(secret="secret-number-1")
    plain = {key: value for key, value in options(own_server.port).items() if "key" not in key}
    place = ObjectMedium("s3://rotating/x", options=plain, credentials=CredentialsFile(file), patience_s=ALL_PATIENCE_S)
    assert place.create("a", b"b")
    own_server.stop()
    own_server.start(secret="secret-number-2")
    file.write_text(file.read_text().replace("number-1", "number-2"))
    os.utime(file, (1, 1))
    assert place.get("a") == b"b"


def test_credentials_open_to_others_are_not_used(tmp_path: Path) -> None:
    file = tmp_path / "credentials.yaml"
    write_credentials(file, "a", "b")
    file.chmod(0o644)
    with pytest.raises(BadInput, match="open to others"):
        CredentialsFile(file).current()


# -- other servers' words --------------------------------------------------------------------------------------------------


def _said(status: int, body: str) -> str:
    return f"Generic S3 error: Error performing GET http://h/b/a in 1ms - Server returned non-2xx status code: {status} X: {body}"


def _xml(code: str, message: str = "Because.") -> str:
    return f'<?xml version="1.0"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'


@pytest.mark.parametrize(
    ("text", "lasting", "credentials"),
    [
        (_said(400, _xml("ExpiredToken")), True, True),
        (_said(403, _xml("InvalidAccessKeyId")), True, True),
        (_said(403, _xml("RequestTimeTooSkewed")), True, True),
        (_said(403, ""), True, True),
        (_said(401, "{}"), True, True),
        (_said(400, _xml("RequestTimeout")), False, False),
        (_said(409, _xml("OperationAborted")), False, False),
        (_said(503, _xml("SlowDown")), False, False),
        (_said(500, _xml("InternalError")), False, False),
        (_said(429, _xml("TooManyRequests")), False, False),
        (_said(400, ""), False, False),
        (_said(404, _xml("NoSuchBucket")), True, False),
        (_said(404, _xml("ContainerNotFound")), True, False),
        ("Generic S3 error: Received redirect without LOCATION, this normally indicates ...", True, False),
        ("error sending request for url: connection refused", False, False),
    ],
)  # fmt: skip
def test_what_lasts_and_what_passes(text: str, lasting: bool, credentials: bool) -> None:
    answer = refusals.read(text)
    assert (answer.lasting, answer.about_credentials) == (lasting, credentials)
    assert not answer.absent


@pytest.mark.parametrize("code", ["NoSuchKey", "BlobNotFound"])
def test_an_object_that_is_not_there(code: str) -> None:
    assert refusals.read(_said(404, _xml(code))).absent


def test_a_refusal_shows_neither_signature_nor_markup() -> None:
    body = (
        "<Error><Code>SignatureDoesNotMatch</Code><Message>No &#34;match&#34;\n here</Message>"
        "<SignatureProvided>abcdef</SignatureProvided></Error>"
    )
    error = refusals.refusal("read a", "s3://b", refusals.read(_said(403, body)), "")
    assert error.message == 's3://b refuses to read a: SignatureDoesNotMatch: No "match" here'
    assert isinstance(error, TierAway)
