"""How an agent is known in a place that several share. Claims themselves: test_tiers.py."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from kybernate.agent.tiers.claims import agent_id

pytestmark = pytest.mark.unit

STATE = Path("/var/lib/kybernate")


def test_machines_of_one_image_are_called_the_same_and_still_told_apart(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("0123456789abcdef0123456789abcdef\n")
    two.write_text("fedcba9876543210fedcba9876543210\n")
    host = socket.gethostname()
    assert agent_id(STATE, one) == f"{host}/0123456789ab:/var/lib/kybernate"
    assert agent_id(STATE, one) != agent_id(STATE, two)
    assert agent_id(STATE, one) == agent_id(STATE, one), "an agent that died finds its own claims"


def test_two_agents_of_one_machine_are_two(tmp_path: Path) -> None:
    machine = tmp_path / "id"
    machine.write_text("0123456789abcdef")
    assert agent_id(Path("/a"), machine) != agent_id(Path("/b"), machine)


@pytest.mark.parametrize("content", [None, b"", b"\n"])
def test_a_machine_without_a_number_is_its_hosts_name(tmp_path: Path, content: bytes | None) -> None:
    machine = tmp_path / "id"
    if content is not None:
        machine.write_bytes(content)
    assert agent_id(STATE, machine) == f"{socket.gethostname()}:/var/lib/kybernate"


def test_a_number_that_is_no_text_does_no_harm(tmp_path: Path) -> None:
    machine = tmp_path / "id"
    machine.write_bytes(b"\xff\xfe" * 20)
    assert agent_id(STATE, machine).endswith(":/var/lib/kybernate")
