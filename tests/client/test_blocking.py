"""The blocking client is the one that awaits, without the waiting: scripts/blocking_client.py makes it, and nobody edits it."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path

import pytest

from kybernate.client import AsyncClient, Client

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "blocking_client.py"


def test_the_blocking_client_is_what_the_script_makes() -> None:
    spec = importlib.util.spec_from_file_location("blocking_client", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    made = script.blocking(script.SOURCE.read_text())
    assert script.TARGET.read_text() == made, "python scripts/blocking_client.py"


@pytest.mark.unit
def test_both_clients_can_do_the_same_and_say_the_same_of_it() -> None:
    def methods(kind: type) -> dict[str, tuple[list[str], str | None]]:
        return {
            name: (list(inspect.signature(method).parameters), method.__doc__)
            for name, method in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_")
        }

    assert methods(Client) == methods(AsyncClient)
    waiting = [name for name, _ in inspect.getmembers(Client, inspect.iscoroutinefunction)]
    assert waiting == []
