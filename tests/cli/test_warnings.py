"""What a file most likely doesn't mean is said by `check`, at the start, by `doctor` and by `reload`; nothing is refused for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.agent.conftest import AgentProcess, agent_process
from tests.cli.test_command_line import kybernate

from kybernate.model.types import MIB

pytestmark = pytest.mark.timeout(300)

MODEL = "command: 'sleep ${LONG}', port: 1"


@pytest.fixture(scope="module")
def agent() -> Iterator[AgentProcess]:
    settings = (
        f"agent: {{pool: {{size: {64 * MIB}}}}}\nmodels: {{large: {{{MODEL}, vram: 1GiB}}}}\n"
        "activator: {listen: '127.0.0.1:0'}\n"
    )
    yield from agent_process(settings=settings, simulated_gpu=True)


def test_what_is_most_likely_not_meant_so_is_said_everywhere(agent: AgentProcess) -> None:
    state = agent.state.root
    wrong = (
        "models.large.command: `${LONG}` is passed on as it stands",
        "models.large.vram: 1.0 GiB will never fit: the GPU here hands out ",
    )
    checked = kybernate("check", str(agent.file), state=state)
    assert checked.returncode == 0
    found = kybernate("doctor", state=state).stdout
    for line in wrong:
        assert f"look at {line}" in checked.stdout
        assert f"look at {line}" in agent.log.read_text(), "at its start"
        assert line in found
    agent.file.write_text(agent.file.read_text().replace("vram: 1GiB", "vram: 16MiB"))
    reloaded = kybernate("reload", state=state).stdout
    assert f"look at {wrong[0]}" in reloaded
    assert "never fit" not in reloaded
    assert "never fit" not in kybernate("doctor", state=state).stdout
