"""What in a configuration is most likely not meant so, on this machine."""

from __future__ import annotations

import os

from kybernate.agent.serving.configuration import Configured
from kybernate.agent.serving.vram_access import VramAccess
from kybernate.doctor.config_lint import too_large
from kybernate.settings.vram_hints import VISIBLE


def advice_on(configured: Configured, vram: VramAccess) -> list[str]:
    """A line each, with the setting's name first."""
    capacity = {uuid: number.capacity for uuid, number in vram.numbers().items()}
    return [*configured.advice, *too_large(configured.served.values(), capacity, os.environ.get(VISIBLE))]
