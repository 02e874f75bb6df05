"""The agent's log: lines for people, or one JSON object a line for machines (journald, Loki and the like).

Fields of a JSON line: `timestamp` (UTC), `level`, `logger`, `event` (the text); for what happened to a workload also
`workload`, `kind` and `data`, as in `kybernate events --json`; `exception` with a traceback.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import TextIO

from kybernate.model.streams import Unfailing
from kybernate.model.types import LogFormat


def configure(form: LogFormat, *, stream: TextIO = sys.stderr) -> Callable[[str], None]:
    """Send all logs of this process to `stream`. Returns where the agent tells of its start-up, a line each."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        _json() if form is LogFormat.JSON else logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    if form is LogFormat.JSON:
        return logging.getLogger("kybernate").info
    whole = Unfailing(stream)  # a full disk under agent.log must not stop a start or an end
    return lambda line: print(f"kybernate: {line}", file=whole, flush=True)


def _json() -> logging.Formatter:
    from structlog import processors, stdlib  # 0.1 s that only those pay who ask for it

    return stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            stdlib.add_log_level,
            stdlib.add_logger_name,
            stdlib.ExtraAdder(allow=("workload", "kind", "data")),
            processors.TimeStamper(fmt="iso", utc=True),
        ],
        processors=[
            stdlib.ProcessorFormatter.remove_processors_meta,
            processors.format_exc_info,
            processors.JSONRenderer(),
        ],
    )
