"""The token of requests over TCP: made once, read again when it changes, and nobody gets in by a file that others could read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kybernate.agent.api.tokens import TokenFile
from kybernate.model.errors import BadInput

pytestmark = pytest.mark.unit

TOKEN = "0123456789abcdefXYZ-_"


def written(path: Path, text: str | bytes = TOKEN, mode: int = 0o600) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return path


def test_a_missing_one_is_made_for_its_user_alone_and_each_is_another(tmp_path: Path) -> None:
    tokens = []
    for name in ("a", "b"):
        file = TokenFile(tmp_path / name)
        file.make()
        assert file.path.stat().st_mode & 0o777 == 0o600
        tokens.append(file.path.read_text().strip())
        assert file.matches(tokens[-1])
    assert len(set(tokens)) == 2
    assert all(len(token) >= 40 for token in tokens)


def test_one_that_is_there_stays_and_blanks_around_it_are_none_of_it(tmp_path: Path) -> None:
    file = TokenFile(written(tmp_path / "t", f"  {TOKEN}\n"))
    file.make()
    assert file.path.read_text() == f"  {TOKEN}\n"
    assert file.matches(TOKEN)


@pytest.mark.parametrize("given", ["", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), f" {TOKEN}", "\udcff", "ä" * 20])
def test_nothing_else_is_the_token(tmp_path: Path, given: str) -> None:
    file = TokenFile(written(tmp_path / "t"))
    file.make()
    assert not file.matches(given)


def test_a_new_token_counts_at_once_and_the_old_one_no_more(tmp_path: Path) -> None:
    file = TokenFile(written(tmp_path / "t"))
    file.make()
    new = "another-token-of-length"
    written(file.path, new)
    assert file.matches(new)
    assert not file.matches(TOKEN)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda path: path.unlink(), id="removed"),
        pytest.param(lambda path: path.chmod(0o644), id="opened to others"),
        pytest.param(lambda path: written(path, "short"), id="made too short"),
        pytest.param(lambda path: written(path, ""), id="emptied"),
    ],
)
def test_a_file_that_is_no_token_any_more_lets_nobody_in(tmp_path: Path, change: object) -> None:
    file = TokenFile(written(tmp_path / "t"))
    file.make()
    assert file.matches(TOKEN)
    assert callable(change)
    change(file.path)
    for given in (TOKEN, "short", ""):
        assert not file.matches(given)
    file.path.unlink(missing_ok=True)
    written(file.path)
    assert file.matches(TOKEN), "and put right, it is one again"


def test_before_it_was_read_nobody_gets_in(tmp_path: Path) -> None:
    assert not TokenFile(tmp_path / "none").matches("")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_one_that_is_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    path = written(tmp_path / "t", mode=mode)
    with pytest.raises(BadInput, match="others may read the token file") as refused:
        TokenFile(path).make()
    assert refused.value.hint == f"chmod 600 {path}"


@pytest.mark.parametrize(
    "text", ["", "short", "x" * 15, "two words of a phrase", "umlaut-äöü-and-more", b"\xff" * 20, "ta\tb" * 9]
)
def test_what_is_no_token_is_refused_and_not_shown(tmp_path: Path, text: str | bytes) -> None:
    with pytest.raises(BadInput, match="is no token: it takes 16 or more visible ASCII characters") as refused:
        TokenFile(written(tmp_path / "t", text)).make()
    assert not text or str(text) not in str(refused.value)


def test_a_place_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=f"can't make the token file {tmp_path}/none/t: No such file"):
        TokenFile(tmp_path / "none" / "t").make()


def test_a_directory_in_its_place_is_no_token(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir(mode=0o700)
    with pytest.raises(BadInput):
        TokenFile(tmp_path / "t").make()
    assert os.path.isdir(tmp_path / "t")  # noqa: PTH112
