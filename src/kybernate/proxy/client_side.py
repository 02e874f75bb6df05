"""What a request needs of its client's connection."""

from __future__ import annotations

from typing import Protocol

from kybernate.proxy.phases import ConnectionPhase


class ClientSide(Protocol):
    """A request calls back only while it is the one under way."""

    @property
    def peer(self) -> bytes:
        """The client's address."""

    @property
    def secure(self) -> bool:
        """It came by TLS."""

    @property
    def write_paused(self) -> bool:
        """The client doesn't read; what is written is heaped up here."""

    @property
    def phase(self) -> ConnectionPhase: ...

    def write(self, data: bytes) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def close_after_answer(self) -> None: ...

    def begin_tunnel(self) -> None:
        """The protocol was changed: whatever the client sends from now on is this request's."""

    def answered(self, *, keep: bool) -> None:
        """The answer is out. `keep`: another request may follow."""

    def cut(self) -> None:
        """The client is to see that its answer isn't whole. Ends what is under way, too."""
