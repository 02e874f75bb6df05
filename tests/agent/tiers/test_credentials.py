"""A bucket's credentials: read again when they change, refused when others can read them, and never shown."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kybernate.agent.tiers.credentials import CredentialsFile
from kybernate.model.errors import BadInput

pytestmark = pytest.mark.unit


def written(path: Path, text: str | bytes, mode: int = 0o600) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return path


def test_it_is_a_mapping_of_texts(tmp_path: Path) -> None:
    path = written(tmp_path / "c.yaml", "access_key_id: AK\nsecret_access_key: 'SK'\n")
    assert CredentialsFile(path).current() == {"access_key_id": "AK", "secret_access_key": "SK"}


def test_what_changed_is_read_again_and_what_did_not_is_not(tmp_path: Path) -> None:
    path = written(tmp_path / "c.yaml", "key: one")
    file = CredentialsFile(path)
    first = file.current()
    assert file.current() is first
    written(path, "key: another")
    assert file.current() == {"key": "another"}


def test_a_file_in_its_place_counts_even_with_the_same_size_and_time(tmp_path: Path) -> None:
    path = written(tmp_path / "c.yaml", "key: one")
    file = CredentialsFile(path)
    file.current()
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    other = written(tmp_path / "new", "key: two")
    os.utime(other, ns=times)
    other.replace(path)
    assert file.current() == {"key": "two"}


def test_what_looks_unchanged_is_read_anew_where_that_is_wanted(tmp_path: Path) -> None:
    path = written(tmp_path / "c.yaml", "key: one")
    file = CredentialsFile(path)
    file.current()
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    path.write_text("key: two")
    os.utime(path, ns=times)
    assert file.current() == {"key": "one"}
    assert file.current(anew=True) == {"key": "two"}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o610, 0o777])
def test_a_file_that_is_open_to_others_is_refused_with_what_to_do(tmp_path: Path, mode: int) -> None:
    path = written(tmp_path / "c.yaml", "key: secret-one", mode)
    with pytest.raises(BadInput, match="are open to others") as refused:
        CredentialsFile(path).current()
    assert refused.value.hint == f"chmod 600 {path}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("- secret", "are no mapping of texts", id="a list"),
        pytest.param("", "are no mapping of texts", id="nothing"),
        pytest.param("key: 12", "are no mapping of texts", id="a number"),
        pytest.param("1: secret", "are no mapping of texts", id="a number as a name"),
        pytest.param("key: [secret", "are no YAML", id="an open bracket"),
        pytest.param(b"key: \xff\xfesecret", "are no YAML", id="no text"),
        pytest.param("expires: 2026-13-45", "are no YAML", id="a date that there isn't"),
        pytest.param("key: " + "[" * 5000 + "secret", "are no YAML", id="nested deeply"),
        pytest.param("key: !!python/object:os.system secret", "are no YAML", id="an object"),
    ],
)
def test_what_makes_no_sense_is_one_line_that_holds_no_secret(tmp_path: Path, text: str | bytes, words: str) -> None:
    path = written(tmp_path / "c.yaml", text)
    with pytest.raises(BadInput, match=words) as refused:
        CredentialsFile(path).current()
    assert "secret" not in str(refused.value)
    assert "\n" not in refused.value.message


def test_a_file_that_is_not_there_is_said_and_what_was_read_before_is_no_answer(tmp_path: Path) -> None:
    path = written(tmp_path / "c.yaml", "key: one")
    file = CredentialsFile(path)
    file.current()
    path.unlink()
    with pytest.raises(BadInput, match=r"can't read the credentials in .*: No such file"):
        file.current()
    written(path, "key: two")
    assert file.current() == {"key": "two"}
