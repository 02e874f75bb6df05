"""What much stored costs the agent in memory: a terabyte's worth of metadata, with small chunks in place of large ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.store.rig import CHUNKS, OWN, PLAIN, SNAPSHOTS, OpenTier, many_snapshots

MEASURE = """
import json, sys
from pathlib import Path
from kybernate.store import *
from kybernate.model.types import MIB

def now(what):
    return next(int(l.split()[1]) * 1024 for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(what))

base = now("VmRSS")
tier = Tier(LocalMedium(Path({root!r})), Catalog(Path({catalog!r}))); tier.open()
space = tier.space(keys_of(DEFAULT_TENANT))
listed = len(space.snapshots())
opened = now("VmHWM")
swept = collect(space)
collected = now("VmHWM")
report = verify(space)
verified = now("VmHWM")
with open_reader(space, "s-3") as reader:
    reader._resolve(list(dict.fromkeys(reader.manifest.ids())))
    read = now("VmHWM")
print(json.dumps(dict(listed=listed, problems=[p.text for p in report.problems], chunks=report.chunks, packs=swept.packs,
  opened=opened - base, collected=collected - base, verified=verified - base, read=read - base, idle=now("VmRSS") - base)))
"""


@pytest.mark.timeout(600)
def test_a_terabyte_of_snapshots_costs_little_memory(open_tier: OpenTier, tmp_path: Path) -> None:
    tier = open_tier(compress_below=0.0)
    many_snapshots(tier.space(PLAIN))
    tier.close()
    tier.catalog.close()
    for catalog in (tmp_path / "catalog.db", tmp_path / "made-anew.db"):
        script = MEASURE.format(root=str(tmp_path / "tier"), catalog=str(catalog))
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        print(
            {
                key: f"{value / 1e6:.0f} MB" if key in ("opened", "collected", "verified", "read", "idle") else value
                for key, value in found.items()
            }
        )
        assert found["listed"] == SNAPSHOTS
        assert found["problems"] == []
        assert found["chunks"] == CHUNKS - OWN + SNAPSHOTS * OWN
        assert max(found[key] for key in ("opened", "collected", "verified", "read")) < 200 << 20
