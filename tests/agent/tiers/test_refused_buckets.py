"""A bucket that refuses this agent: nobody is lost by it, `doctor` asks it, and renewed credentials are used at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.agent.conftest import AgentProcess, MakeAgent, goes_on, kybernate, started
from tests.conftest import Eventually
from tests.store.server import ACCESS, SECRET, Mode, Proxy

from kybernate.model.types import MIB, TierName, WorkloadState

pytestmark = [pytest.mark.root, pytest.mark.timeout(400)]


def write_credentials(path: Path, access: str, secret: str) -> None:
    new = path.with_suffix(".new")
    new.touch(0o600)
    new.write_text(f"access_key_id: {access}\nsecret_access_key: {secret}\n")
    new.replace(path)


def about_the_bucket(agent: AgentProcess) -> tuple[bool, str]:
    """What `doctor` says of it."""
    checks = json.loads(kybernate(agent, "doctor", "--json").stdout)["checks"]
    found = next(check for check in checks if check["name"] == "tier object")
    return found["ok"], f"{found['detail']} {found['remedy']}"


@pytest.mark.parametrize("access", ["nobody", ACCESS], ids=["unknown key", "wrong secret"])
def test_a_refusal_loses_nobody_and_renewed_credentials_mend_it(
    make_agent: MakeAgent, bucket: Callable[..., str], eventually: Eventually, tmp_path: Path, access: str
) -> None:
    agent = make_agent(store=bucket())
    eventually(lambda: agent.client.node().tiers[1].state == "ready", what="the bucket is opened")
    started(agent, eventually, "one", size=8 * MIB)
    agent.client.pause("one", tier=TierName.OBJECT)
    assert about_the_bucket(agent)[0]

    write_credentials(tmp_path / "credentials.yaml", access, "wrong")
    # Nobody has ordered anything: doctor itself has asked.
    well, text = about_the_bucket(agent)
    assert not well
    assert "credentials_file" in text
    assert ("XAdminUserNotFound" if access == "nobody" else "SignatureDoesNotMatch") in text
    refused = kybernate(agent, "resume", "one")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1), refused.stderr
    assert "refuses to" in refused.stderr
    assert "later" not in refused.stderr
    entry = agent.client.workload("one")
    assert (entry.state, entry.tier) == (WorkloadState.PAUSED, TierName.OBJECT)

    write_credentials(tmp_path / "credentials.yaml", ACCESS, SECRET)
    assert about_the_bucket(agent)[0]
    agent.client.resume("one")
    goes_on(agent, eventually, "one")
    agent.client.stop("one", remove=True)


def test_doctor_notices_a_bucket_that_has_gone_silent(
    make_agent: MakeAgent, bucket: Callable[..., str], proxy: Proxy, eventually: Eventually
) -> None:
    agent = make_agent(store=bucket(proxy.port))
    eventually(lambda: agent.client.node().tiers[1].state == "ready", what="the bucket is opened")
    assert about_the_bucket(agent)[0]
    proxy.set(Mode.REFUSE)
    eventually(lambda: not about_the_bucket(agent)[0], what="doctor says that it doesn't answer")
    proxy.set(Mode.PASS)
    eventually(lambda: about_the_bucket(agent)[0], what="doctor says that it answers again")
