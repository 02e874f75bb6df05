"""A configuration that was read and found whole, and how two of them differ. Reading blocks: use a thread."""

from __future__ import annotations

from dataclasses import dataclass

from kybernate.agent.serving.address import Address, answered_hosts, refuse_taken
from kybernate.agent.serving.keys import load_keys
from kybernate.doctor.config_lint import advice
from kybernate.model.api_serving import ReloadView
from kybernate.model.messages import Key
from kybernate.model.types import WorkloadName
from kybernate.settings import Settings
from kybernate.settings.differences import differing
from kybernate.settings.specs import Served, served_of


@dataclass(frozen=True, slots=True)
class Configured:
    """A configuration that was read and found whole."""

    settings: Settings
    served: dict[WorkloadName, Served]
    keys: tuple[Key, ...]
    address: Address | None
    """None: there are no models."""
    hosts: tuple[str, ...] | None = None
    """Names by which requests may come. None: any."""
    advice: tuple[str, ...] = ()
    """What is most likely not meant so."""


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
