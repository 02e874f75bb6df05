"""`python -m kybernate.proxy`: one worker of the activator. The agent starts it, and finds it again after its own restart."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import resource
import signal
import socket
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO, cast

import structlog
import uvloop

from kybernate.model.addresses import host_and_port
from kybernate.model.errors import BadInput, KybernateError
from kybernate.model.streams import Unfailing
from kybernate.proxy.client_connection import ClientConnection
from kybernate.proxy.patience import UNREAD_S
from kybernate.proxy.worker import Worker

if TYPE_CHECKING:
    from kybernate.proxy.metrics import Meter
    from kybernate.proxy.tracing import Tracing

_BACKLOG: Final = 4096
_GRACE_S: Final = 10.0
_HANDSHAKE_S: Final = 10.0
_PROBE_AFTER_S: Final = 60
_PROBE_EVERY_S: Final = 30
_GC_THRESHOLDS: Final = (50_000, 20, 100)
"""Requests make no reference cycles; a full collection with 10,000 held ones costs tens of milliseconds, which is a p99."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", Unfailing(sys.stderr))),
    )
    try:
        return uvloop.run(_run(options))
    except KybernateError as e:
        print(f"kybernate.proxy: {e}", file=sys.stderr)  # noqa: T201 - a person started it by hand
        return e.exit_status


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m kybernate.proxy", description=(__doc__ or "").split(":")[1].strip()
    )
    parser.add_argument("--agent", required=True, metavar="SOCKET", help="the agent's Unix socket for workers")
    parser.add_argument(
        "--listen", required=True, metavar="HOST:PORT", help="where requests come in; shared by all workers"
    )
    parser.add_argument("--worker", type=int, default=0, metavar="N", help="which of the workers this is, from 0")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="how many there are")
    parser.add_argument("--tls-certificate", type=Path, metavar="FILE", help="PEM, with those it was issued by")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="PEM")
    parser.add_argument(
        "--metrics-directory", type=Path, metavar="DIR", help="where prometheus_client's files of all workers lie"
    )
    parser.add_argument("--otlp", metavar="URL", help="OTLP/HTTP collector for traces, as in http://127.0.0.1:4318")
    parser.add_argument(
        "--grace", type=float, default=_GRACE_S, metavar="S", help="for answers under way after SIGTERM"
    )
    return parser.parse_args(arguments)


async def _run(options: argparse.Namespace) -> int:
    _set_limits()
    listener = _listener(options.listen)
    tls = _tls(options.tls_certificate, options.tls_key)
    meter = _meter(options.metrics_directory)
    tracing = _tracing(options.otlp, worker=options.worker)
    worker = Worker(
        agent=options.agent, number=options.worker, workers=max(1, options.workers), meter=meter, tracing=tracing
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, worker.ended.set)
    running = loop.create_task(worker.run())
    running.add_done_callback(lambda _: worker.ended.set())
    serving = loop.create_task(_serve(worker, listener, tls))
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    await worker.ended.wait()
    serving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await serving
    if not running.done():
        await worker.finish(options.grace if worker.grace_s is None else worker.grace_s)
        running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    if tracing is not None:
        await loop.run_in_executor(None, tracing.close)
    return 0


async def _serve(worker: Worker, listener: socket.socket, tls: ssl.SSLContext | None) -> None:
    """Nobody is let in before it is known where requests go."""
    await worker.configured.wait()
    server = await asyncio.get_running_loop().create_server(
        lambda: ClientConnection(worker.services),
        sock=listener,
        backlog=_BACKLOG,
        ssl=tls,
        ssl_handshake_timeout=_HANDSHAKE_S if tls is not None else None,
    )
    worker.listening()
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        server.close()


def _listener(address: str) -> socket.socket:
    """Bound, so that a port in use is said at once; several workers bind the same."""
    try:
        host, port = host_and_port(address)
    except BadInput as e:
        raise BadInput(f"--listen {address}: {e.message}") from e
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        _probe_clients(made)
        made.bind(where)
    except OSError as e:
        raise BadInput(
            f"can't listen on {address}: {e.strerror or e}", hint="choose another address or end who has it"
        ) from e
    made.setblocking(False)
    return made


def _tls(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise BadInput("--tls-certificate and --tls-key belong together")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as e:
        raise BadInput(f"can't use the certificate {certificate} with the key {key}: {e}") from e
    return context


def _meter(directory: Path | None) -> Meter | None:
    if directory is None:
        return None
    directory.mkdir(parents=True, exist_ok=True)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)  # prometheus_client reads it once, when it is imported
    from kybernate.proxy.counters import preallocate_files
    from kybernate.proxy.metrics import Meter

    preallocate_files()
    return Meter()


def _tracing(url: str | None, *, worker: int) -> Tracing | None:
    if url is None:
        return None
    try:
        from kybernate.proxy.tracing import Tracing
    except ImportError as e:
        raise BadInput(f"--otlp needs OpenTelemetry: {e}", hint="pip install 'kybernate[otel]'") from e
    return Tracing(url, worker=worker)


def _probe_clients(listener: socket.socket) -> None:
    """A client whose machine is gone says no goodbye, and a stream or websocket of its would keep the model from ever leaving. What
    is accepted inherits these, so that no connection pays for them."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_AFTER_S)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_EVERY_S)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(UNREAD_S * 1000))


def _set_limits() -> None:
    """10,000 held requests are as many descriptors. No core files: clients' keys and prompts would be in them."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    sys.exit(main())
