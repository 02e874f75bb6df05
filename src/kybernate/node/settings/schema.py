"""The JSON schema of kybernate.yaml, by which editors complete and check it while it is written."""

from __future__ import annotations

from typing import Any

from kybernate.node.settings.whole import Settings


def schema() -> dict[str, Any]:
    """JSON schema, 2020-12. It is as strict as one can be that knows one value at a time; `kybernate check` knows them all."""
    made = Settings.model_json_schema(by_alias=True, mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "kybernate.yaml", **made}
