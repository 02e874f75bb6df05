"""The file of clients that may ask: only hashes leave it, and nonsense is refused without being shown."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from kybernate.agent.serving.keys import load_keys
from kybernate.model.errors import BadInput

pytestmark = pytest.mark.unit


def test_keys_leave_their_file_as_hashes_only(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    digest = hashlib.sha256(b"another-secret-of-mine").hexdigest()
    file.write_text(f"web: sk-0123456789abcdef\nbatch: {{sha256: {digest.upper()}, models: [a, b]}}\n")
    file.chmod(0o600)
    web, batch = load_keys(file)
    assert (web.name, web.sha256, web.models) == ("web", hashlib.sha256(b"sk-0123456789abcdef").hexdigest(), ())
    assert (batch.sha256, batch.models) == (digest, ("a", "b"))


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        ("web: sk-0123456789abcdef\n", 0o644, "open to others"),
        ("web: short\n", 0o600, "16 characters"),
        ("", 0o600, "no keys"),
        ("- a\n", 0o600, "no keys"),
        ("web: {key: sk-0123456789abcdef, model: a}\n", 0o600, "key"),
        ("web: {sha256: abc}\n", 0o600, "64"),
        ("a: sk-0123456789abcdef\nb: sk-0123456789abcdef\n", 0o600, "two clients"),
        ("a: [sk-0123456789abcdef", 0o600, "no YAML"),
        ("a: " + "[" * 3000 + "sk-0123456789abcdef", 0o600, "no YAML"),
        ("a: 2020-02-30\nb: sk-0123456789abcdef\n", 0o600, "no YAML"),
        ("a: sk-0123456789abcdef\na: sk-0123456789abcdeg\n", 0o600, "twice"),
    ],
)
def test_senseless_keys_are_refused_and_not_shown(tmp_path: Path, text: str, mode: int, words: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    file.chmod(mode)
    with pytest.raises(BadInput, match=words) as caught:
        load_keys(file)
    assert "0123456789abcdef" not in str(caught.value)
    assert caught.value.__cause__ is None
