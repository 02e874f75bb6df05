"""Where things lie in a tier: keys that lead nowhere else, and what is too large to be ours."""

from __future__ import annotations

import pytest

from kybernate.model.snapshot_names import snapshot_name
from kybernate.store.media import key_of_key, key_of_manifest, key_of_pack, too_large
from kybernate.store.packs import PackId
from kybernate.store.tenants import tenant_name

pytestmark = pytest.mark.unit

TENANT = tenant_name("team-a")


def test_everything_of_a_tenant_lies_below_its_name() -> None:
    assert key_of_pack(TENANT, PackId("0f" * 16)) == f"team-a/packs/{'0f' * 16}"
    assert key_of_manifest(TENANT, snapshot_name("train-1")) == "team-a/manifests/train-1"
    assert key_of_key(TENANT) == "team-a/key"


@pytest.mark.parametrize(("size", "found"), [(5_000_000, "5000000 bytes"), (None, "more")])
def test_what_is_far_too_large_is_damage_with_both_numbers(size: int | None, found: str) -> None:
    error = too_large("the tier's identity", size, 1024)
    assert error.message == f"the tier's identity is damaged: it has {found}, and at most 1024 make sense"
    assert error.hint
