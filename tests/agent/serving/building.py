"""Values for tests of serving's pure parts: models and jobs as the configuration names them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kybernate.model.messages import Endpoint, Limits, Load
from kybernate.model.types import Class, TierName, WorkloadName
from kybernate.settings.specs import Kind, Program, Served


def program(*argv: str, **given: Any) -> Program:
    made = Program(argv=argv or ("serve",), directory="/srv", environment={}, layers=(), network="none", user=None)
    return replace(made, **given)


def model(name: str = "a", *, concurrency: int = 0, **given: Any) -> Served:
    return _served(name, Kind.MODEL, Class.INTERACTIVE, endpoint=_endpoint(name, concurrency), **given)


def job(name: str = "j", **given: Any) -> Served:
    return _served(name, Kind.JOB, Class.BATCH, **given)


def load(name: str = "a", **given: Any) -> Load:
    made = Load(model=name, epoch=1, waiting=0, oldest_s=None, in_flight=0, begun=0, ended=0)
    return replace(made, **given)


def _endpoint(name: str, concurrency: int) -> Endpoint:
    return Endpoint(model=name, port=8000, limits=Limits(concurrency=concurrency))


def _served(name: str, kind: Kind, klass: Class, **given: Any) -> Served:
    made = Served(
        name=WorkloadName(name),
        kind=kind,
        klass=klass,
        priority=0,
        program=program(),
        vram=(),
        lowest_tier=TierName.RAM,
        demote_after_s=None,
        cold_start=True,
        fingerprint="f",
    )
    return replace(made, **given)
