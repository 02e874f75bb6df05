"""Who may be started while the agent ends all workloads."""

from __future__ import annotations

import pytest

from kybernate.agent.workloads.starts import Starts
from kybernate.model.errors import Busy


def test_a_second_down_that_fails_opens_nothing_that_the_first_keeps_closed() -> None:
    starts = Starts()
    starts.close()
    starts.close()
    starts.reopen()
    with pytest.raises(Busy, match="going down"):
        starts.refuse()
    starts.reopen()
    starts.refuse()
