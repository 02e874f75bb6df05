"""The JSON schema of kybernate.yaml, with which an editor completes and checks it."""

from __future__ import annotations

from typing import Any

from kybernate.settings.values import WORKLOAD_PATTERN
from kybernate.settings.whole import Settings


def schema() -> dict[str, Any]:
    """As of JSON Schema 2020-12; descriptions are those of the page."""
    made = _plain(Settings.model_json_schema(mode="validation"))
    for section in ("models", "jobs"):
        made["properties"][section]["propertyNames"] = {"pattern": WORKLOAD_PATTERN}
    made["patternProperties"] = {"^x-": {"description": "Your own: templates, named by anchors."}}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "kybernate.yaml", **made}


def _plain(node: Any) -> Any:
    """Without titles, which are the names over again and hide the descriptions in an editor, and without pydantic's own words."""
    if isinstance(node, list):
        return [_plain(each) for each in node]
    if not isinstance(node, dict):
        return node
    return {
        key: {name: _plain(each) for name, each in value.items()} if key in ("properties", "$defs") else _plain(value)
        for key, value in node.items()
        if not (key == "title" and isinstance(value, str)) and key not in ("ge", "le", "gt", "lt")
    }
