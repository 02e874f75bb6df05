"""The agent exports what the files in deploy/ ask for, with the labels they use; the activator's numbers among it."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from tests.agent.serving.conftest import ServingAgent, free_port, server
from tests.conftest import SLOWER, Eventually

pytestmark = [pytest.mark.root, pytest.mark.timeout(300 * SLOWER)]

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
LABELS_OF_PROMETHEUS = {"job", "instance", "le"}

Samples = dict[str, list[dict[str, str]]]
"""Label sets by the sample's name."""


def samples(agent: ServingAgent) -> Samples:
    text = agent.metrics()
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(dict(sample.labels))
    return found


def expressions() -> list[str]:
    panels = json.loads((DEPLOY / "grafana-kybernate.json").read_text())["panels"]
    asked = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    rules = yaml.safe_load((DEPLOY / "prometheus-alerts.yaml").read_text())["groups"][0]["rules"]
    return [*asked, *(rule["expr"] for rule in rules)]


def wanted() -> list[tuple[str, set[str]]]:
    """Metrics that are named, each with the labels that its expression uses."""
    found = []
    for expression in expressions():
        by = set(re.findall(r"\w+", " ".join(re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression))))
        for name, selector in re.findall(r"\b(kybernate_\w+)(?:{([^}]*)})?", expression):
            labels = set(re.findall(r"(\w+)\s*=", selector or ""))
            found.append((name, (labels | by) - LABELS_OF_PROMETHEUS))
    return found


def ask(port: int, model: str) -> None:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", data=body, headers={"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        assert json.load(response)["choices"]


def test_every_metric_of_the_dashboard_is_exported(
    begin: Callable[..., ServingAgent], eventually: Eventually, tmp_path: Path
) -> None:
    port = free_port()
    settings = {"store": {"directory": str(tmp_path / "store"), "budget": "1GiB"}}
    models = {"a": server("a"), "b": server("b", port=8001)}
    link = {"KYBERNATE_SIMULATED_LINK_GIB_S": "4"}  # one without a limit exports none
    agent = begin(port=port, environment=link, agent=settings, models=models)
    eventually(lambda: any(worker.connected for worker in agent.client.serving().workers), timeout_s=40)
    for model in ("a", "b", "a"):
        ask(port, model)
    with pytest.raises(urllib.error.HTTPError, match="404"):
        ask(port, "nobody")
    names = {name for name, _ in wanted()}
    eventually(lambda: names <= samples(agent).keys(), timeout_s=20, what=f"all of {sorted(names)}")
    answered = lambda: {sample["model"] for sample in samples(agent)["kybernate_requests_total"]}  # noqa: E731
    eventually(lambda: answered() >= {"a", "b"}, what="both models' requests: workers write once a second")
    exported = samples(agent)
    for name, labels in wanted():
        assert any(labels <= sample.keys() for sample in exported[name]), f"{name} has no labels {labels}"
    places = {sample["place"] for sample in exported["kybernate_workload_place_seconds_total"]}
    assert {"vram", "ram", "switching"} <= places


def test_the_dashboard_file_is_one() -> None:
    document = json.loads((DEPLOY / "grafana-kybernate.json").read_text())
    panels = document["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [tuple(panel["gridPos"][key] for key in "xywh") for panel in panels]
    cells = [(i, j) for x, y, w, h in places for i in range(x, x + w) for j in range(y, y + h)]
    assert len(set(cells)) == len(cells), "panels overlap"
    assert all(x + w <= 24 for x, _, w, _ in places)
    assert {variable["name"] for variable in document["templating"]["list"]} == {"datasource", "job", "instance"}
    assert len(wanted()) > 30
