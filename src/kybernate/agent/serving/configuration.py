"""A configuration that was read and found whole, which one is in force, how two of them differ. Reading blocks: use a thread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kybernate.agent.serving.address import Address, answered_hosts, refuse_taken
from kybernate.agent.serving.keys import load_keys
from kybernate.doctor.config_lint import advice
from kybernate.model.api_serving import ReloadView
from kybernate.model.messages import Configure, Key
from kybernate.model.types import TierName, WorkloadName
from kybernate.settings import ServingSettings, Settings
from kybernate.settings.differences import differing
from kybernate.settings.specs import Served, served_of


@dataclass(frozen=True, slots=True)
class Configured:
    """A configuration that was read and found whole."""

    settings: Settings
    served: Mapping[WorkloadName, Served]
    keys: tuple[Key, ...]
    address: Address | None
    """None: there are no models."""
    hosts: tuple[str, ...] | None = None
    """Names by which requests may come. None: any."""
    advice: tuple[str, ...] = ()
    """What is most likely not meant so."""

    def message(self) -> Configure:
        """What workers are told of it."""
        activator = self.settings.activator
        limits = activator.limits
        return Configure(
            endpoints=tuple(each.endpoint for each in self.served.values() if each.endpoint is not None),
            keys=self.keys,
            hosts=self.hosts,
            origins=("*",) if activator.origins == "any" else activator.origins,
            upstream=activator.upstream,
            heartbeat_s=activator.heartbeat,
            body_max=limits.body,
            held_max=limits.held,
            held_bytes_max=limits.held_bytes,
            idle_s=limits.idle,
            record=None if activator.record is None else str(activator.record),
        )


class CurrentConfiguration:
    """The one in force. Empty before `replace`. Use it in the loop's thread."""

    def __init__(self) -> None:
        self._now = Configured(Settings(), {}, (), None)

    @property
    def now(self) -> Configured:
        return self._now

    @property
    def served(self) -> Mapping[WorkloadName, Served]:
        """Models and jobs by name."""
        return self._now.served

    @property
    def serving(self) -> ServingSettings:
        return self._now.settings.serving

    @property
    def grace_s(self) -> float:
        """What running answers get to finish."""
        return self._now.settings.activator.grace

    def replace(self, new: Configured) -> None:
        self._now = new

    def may_preempt(self, name: WorkloadName) -> bool:
        """Whether its requests in flight may be cut off for others."""
        served = self.served.get(name)
        return served is not None and served.klass in self.serving.preempt

    def port_of(self, name: WorkloadName) -> int | None:
        """Where a model is asked by us. None: it is none."""
        served = self.served.get(name)
        return None if served is None or served.endpoint is None else served.endpoint.port

    def keeps_in_ram(self, name: WorkloadName) -> bool:
        """Whether it goes no deeper than RAM by itself."""
        served = self.served.get(name)
        return served is not None and served.lowest_tier is TierName.RAM


def configured(settings: Settings) -> Configured:
    """What a file means, with the keys, the certificate and the address that it names. Blocks.

    Raises:
        BadInput: one of these can't be had.
    """
    path = settings.activator.keys_file
    keys = () if path is None else load_keys(path)
    address = Address.of(settings.activator) if settings.models else None
    if address is not None:
        refuse_taken(address)
    hosts = answered_hosts(settings)
    return Configured(settings, served_of(settings), keys, address, hosts, advice=tuple(advice(settings)))


def settings_changed(old: Configured, new: Configured) -> list[str]:
    """Settings besides models and jobs, and the content of files that they name."""
    found = differing(old.settings.activator, new.settings.activator, under="activator")
    if old.keys != new.keys and "activator.keys_file" not in found:
        found.append("the keys in activator.keys_file")
    pairs = {each.pair for each in (old.address, new.address) if each is not None}
    if len(pairs) == 2 and not any(each.startswith("activator.tls") for each in found):
        found.append("the files of activator.tls")
    return [*found, *differing(old.settings.serving, new.settings.serving, under="serving")]


def kinds(view: ReloadView) -> list[tuple[str, list[str]]]:
    """What became of which names, in the order in which it is said."""
    return [("added", view.added), ("removed", view.removed), ("changed", [*view.changed, *view.settings])]
