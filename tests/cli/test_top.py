"""`top` leaves columns out where the terminal is narrow, and cuts none but the command."""

from __future__ import annotations

import pytest

from kybernate.cli.commands.looking import COLUMNS
from kybernate.cli.commands.top import columns_for

ROW = (
    "trainer",
    "resuming (1.0 s)",
    "nvme",
    "zero",
    "broker",
    "256.0 MiB",
    "256.0 MiB",
    "12 min 5 s",
    "1.20 s",
    "1.07 s",
    "-",
    "python train.py",
)


@pytest.mark.parametrize(
    ("width", "left_out"),
    [
        (140, set()),
        (80, {"BACKEND", "DEPTH", "HOST COPY", "RESUME"}),
        (40, set(COLUMNS) - {"NAME", "STATE", "TIER", "VRAM", "FOR", "COMMAND"}),
    ],
)
def test_columns(width: int, left_out: set[str]) -> None:
    assert set(COLUMNS) - {COLUMNS[i] for i in columns_for([ROW], width=width)} == left_out
