"""A request's body on its way through: where it ends, and what of it is kept here, on the worker's account.

A body that names the model is kept in whole (`content`) until that is known; any other passes through. What came before there is a
connection is in `ahead`, and stays there until the answer begins, as long as nothing was sent behind it: it can be sent again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kybernate.proxy.forms import BadForm, ModelField
from kybernate.proxy.framing import BadBody, ChunkedBody, Framing, LengthBody
from kybernate.proxy.heads import RequestHead
from kybernate.proxy.held import HeldBudget
from kybernate.proxy.refusals import Refusal, held_full, too_large

if TYPE_CHECKING:
    from kybernate.proxy.upstream import Upstream

AHEAD_MAX: Final = 64 << 10
"""Bytes of a body that are taken before its turn has come; the rest waits at the client's."""
_LAST_CHUNK: Final = b"0\r\n\r\n"


class NotTaken(Exception):
    """`used` bytes belonged to the body. `whole`: it has ended all the same, and another request may follow it."""

    def __init__(self, refusal: Refusal, *, used: int, whole: bool) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal
        self.used = used
        self.whole = whole


class RequestBody:
    __slots__ = (
        "_booked",
        "_budget",
        "_form",
        "_framing",
        "_rechunks",
        "_size",
        "_size_max",
        "ahead",
        "can_repeat",
        "content",
        "done",
    )

    def __init__(self, head: RequestHead, budget: HeldBudget, *, size_max: int) -> None:
        self._framing: Framing | None = None
        self.done = True
        """There is no more to come."""
        if head.chunked:
            self._framing = ChunkedBody()
            self.done = False
        elif head.length:
            self._framing = LengthBody(head.length)
            self.done = False
        self._budget = budget
        self._size_max = size_max
        self._size = 0
        self._booked = 0
        """Bytes that are kept here, by the worker's account."""
        self._form: ModelField | None = None
        """Watched for a second model while it passes through."""
        self._rechunks = False
        self.content: list[bytes] | None = None
        """Of a body that is kept in whole."""
        self.ahead: list[bytes] = []
        """What is to be sent as soon as there is a connection."""
        self.can_repeat = True
        """All that was sent is still in `ahead`."""

    def take(self, data: bytes, upstream: Upstream | None) -> int:
        """How much of `data` belongs to it. It goes to `upstream`, if there is one.

        Raises:
            NotTaken: it is not to be passed on any further.
        """
        framing = self._framing
        if framing is None or self.done:
            return 0
        content = self.content
        pieces: list[bytes] | None = content if self._form is None else []
        try:
            used = framing.take(data, pieces)
        except BadBody as e:
            raise NotTaken(Refusal(400, "bad_body", str(e)), used=len(data), whole=False) from None
        self.done = framing.done
        self._size += used
        if self._size > self._size_max:
            raise NotTaken(too_large(self._size_max), used=used, whole=False)
        if content is not None:
            if not self._budget.take_bytes(used):
                raise NotTaken(held_full(), used=used, whole=self.done)
            self._booked += used
        elif used:
            piece = data if used == len(data) else data[:used]
            if self._form is not None and pieces is not None:
                piece = self._of_form(self._form, pieces, used)
            self._pass_on(piece, upstream)
        return used

    def keep_whole(self) -> None:
        """It names its model: nothing of it is passed on before that is known."""
        self.content = []

    def take_content(self) -> bytes:
        """All that was kept in whole. The caller has it from now on; it stays on the account."""
        content, self.content = self.content or [], None
        return content[0] if len(content) == 1 else b"".join(content)

    def take_ahead(self) -> bytes:
        """All that is to be sent now. It stays here, so that it can be sent again."""
        ahead = self.ahead
        if len(ahead) > 1:
            ahead = self.ahead = [b"".join(ahead)]
        return ahead[0]

    def go_on_as_form(self, form: ModelField, *, rechunks: bool) -> None:
        """The model is known: what else comes passes through. `rechunks`: in chunks of our own."""
        self.content = None
        self._form = form
        self._rechunks = rechunks
        if rechunks:
            self.ahead[-1] = chunk(self.ahead[-1])

    def keep(self, size: int) -> bool:
        """On account of what was made of it. False: there is no room."""
        if not self._budget.take_bytes(size):
            return False
        self._booked += size
        return True

    def give_back(self, size: int) -> None:
        """So much of what was kept isn't any more."""
        self._budget.give_bytes(size)
        self._booked -= size

    def release(self) -> None:
        """Nothing of it is kept any more."""
        if self._booked:
            self._budget.give_bytes(self._booked)
            self._booked = 0
        self.content = None
        self.ahead.clear()

    @property
    def is_much_ahead(self) -> bool:
        return sum(map(len, self.ahead)) > AHEAD_MAX

    def _pass_on(self, piece: bytes, upstream: Upstream | None) -> None:
        if upstream is None:
            self.ahead.append(piece)
            self._budget.book_bytes(len(piece))
            self._booked += len(piece)
            return
        if self.can_repeat:
            self.can_repeat = False
            self.release()
        upstream.write(piece)

    def _of_form(self, form: ModelField, pieces: list[bytes], used: int) -> bytes:
        content = b"".join(pieces)
        try:
            form.feed(content)
        except BadForm as e:
            raise NotTaken(Refusal(400, "invalid_body", str(e)), used=used, whole=False) from None
        if not self._rechunks:
            return content
        return (chunk(content) if content else b"") + (_LAST_CHUNK if self.done else b"")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
