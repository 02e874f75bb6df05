"""Keys and names of a tenant: what follows from a secret, what a stranger learns of it, and which names lead nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.model.errors import BadInput
from kybernate.model.snapshot_names import SNAPSHOT_NAME, snapshot_name
from kybernate.store import keys_of, secret_from_file, tenant_name
from kybernate.store.tenants import NO_KEY

pytestmark = pytest.mark.unit

A, B = tenant_name("a"), tenant_name("b")
SECRET = bytes(range(32))


@pytest.mark.parametrize("text", ["a", "0", "a-1", "a.b", "a_b", "x" * 128, "train-20260101.5"])
def test_names_that_are_one_plain_file(text: str) -> None:
    assert snapshot_name(text) == tenant_name(text) == text


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param(".", id="this directory"),
        pytest.param("..", id="the one above"),
        pytest.param("a..b", id="two dots"),
        pytest.param("a/b", id="a directory"),
        pytest.param(".a", id="hidden"),
        pytest.param("a.", id="ends with a dot"),
        pytest.param("A", id="upper case: some file systems know none"),
        pytest.param("x" * 129, id="too long"),
        pytest.param("a\n", id="a line's end"),
        pytest.param("a\0", id="NUL"),
        pytest.param("ä", id="no ASCII"),
    ],
)
def test_names_that_are_not(text: str) -> None:
    with pytest.raises(BadInput, match="bad snapshot name"):
        snapshot_name(text)
    with pytest.raises(BadInput, match="bad tenant name"):
        tenant_name(text)


@given(st.from_regex(SNAPSHOT_NAME, fullmatch=True))
def test_what_the_pattern_lets_pass_is_a_name_unless_it_has_two_dots(text: str) -> None:
    if ".." in text or text.endswith("\n"):
        with pytest.raises(BadInput):
            snapshot_name(text)
    else:
        assert snapshot_name(text) == text


# -- keys ----------------------------------------------------------------------------------------------------------------


def test_the_same_secret_makes_the_same_keys_whoever_asks() -> None:
    one, two = keys_of(A, SECRET), keys_of(A, SECRET)
    assert (one.fingerprint, one.naming, one.sealing) == (two.fingerprint, two.naming, two.sealing)
    assert one.encrypted


def test_each_purpose_has_a_key_of_its_own_and_none_is_the_secret() -> None:
    keys = keys_of(A, SECRET)
    assert len({keys.naming, keys.sealing, SECRET, keys.fingerprint.ljust(32, b"\0")}) == 4


def test_nothing_of_the_keys_is_shown() -> None:
    keys = keys_of(A, SECRET)
    shown = repr(keys)
    for hidden in (keys.naming, keys.sealing, SECRET):
        assert repr(hidden) not in shown
        assert hidden.hex() not in shown


def test_two_secrets_share_no_name_of_any_content() -> None:
    content = memoryview(b"the same weights")
    names = {
        keys_of(A, SECRET).chunk_id(content),
        keys_of(A, bytes(32)).chunk_id(content),
        keys_of(A).chunk_id(content),
    }
    assert len(names) == 3


def test_without_a_secret_tenants_share_nothing_either_and_nothing_is_encrypted() -> None:
    content = memoryview(b"the same weights")
    a, b = keys_of(A), keys_of(B)
    assert a.chunk_id(content) != b.chunk_id(content)
    assert (a.fingerprint, a.encrypted, a.cipher) == (NO_KEY, False, None)


def test_a_secret_makes_the_same_names_for_every_tenant_that_has_it() -> None:
    content = memoryview(b"the same weights")
    assert keys_of(A, SECRET).chunk_id(content) == keys_of(B, SECRET).chunk_id(content)


@pytest.mark.parametrize("length", [0, 16, 31, 33, 64])
def test_a_secret_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(BadInput, match=f"the key of tenant a has {length} bytes instead of 32"):
        keys_of(A, bytes(length))


@given(st.lists(st.binary(max_size=50), max_size=4))
def test_a_seal_is_of_all_parts_in_their_order(parts: list[bytes]) -> None:
    keys = keys_of(A, SECRET)
    assert keys.seal(*parts) == keys.seal(b"".join(parts))
    assert keys.seal(*parts) != keys.seal(*parts, b"x")
    assert keys.seal(*parts) != keys_of(A).seal(*parts)


# -- the secret's file ---------------------------------------------------------------------------------------------------


def written(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(SECRET, id="as bytes"),
        pytest.param(SECRET.hex().encode(), id="as digits"),
        pytest.param(SECRET.hex().upper().encode() + b"\n", id="in upper case, with a line's end"),
        pytest.param(b"  " + SECRET.hex().encode() + b"  \n", id="with blanks around"),
    ],
)
def test_a_secret_is_32_bytes_or_64_digits(tmp_path: Path, content: bytes) -> None:
    assert secret_from_file(written(tmp_path / "key", content)) == SECRET


@pytest.mark.parametrize(
    "content",
    [b"", b"x" * 31, b"x" * 33, SECRET.hex().encode()[:-1], SECRET.hex().encode() + b"0", b"g" * 64, b"\xff" * 64],
)
def test_anything_else_is_none_and_is_not_shown(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(BadInput, match="gives no key") as refused:
        secret_from_file(written(tmp_path / "key", content))
    assert refused.value.hint == "it must be 32 bytes or 64 hexadecimal digits: `openssl rand -hex 32`"
    assert not content or content.decode(errors="replace") not in str(refused.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610, 0o666])
def test_a_file_that_is_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    path = written(tmp_path / "key", SECRET, mode)
    with pytest.raises(BadInput, match="is open to others") as refused:
        secret_from_file(path)
    assert refused.value.hint == f"chmod 600 {path}"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"can't read the key file .*/none: No such file or directory"):
        secret_from_file(tmp_path / "none")
