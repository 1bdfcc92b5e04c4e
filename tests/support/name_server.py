"""A name server that returns given addresses for every name, as for a headless Service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dnslib import QTYPE, RR, A
from dnslib.server import BaseResolver, DNSLogger, DNSServer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType


class NameServer(BaseResolver):
    """A name server on a free port of 127.0.0.1.

    Attributes:
        addresses: The addresses of every name; may be replaced at any time.
        port: The port.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        self.addresses = tuple(addresses)
        self._server = DNSServer(self, address="127.0.0.1", port=0, logger=DNSLogger(logf=_quiet))
        self.port: int = self._server.server.server_address[1]

    def resolve(self, request: Any, handler: object) -> Any:  # noqa: ANN401, ARG002 - dnslib is untyped
        """Answer a request, called by dnslib."""
        reply = request.reply()
        if request.q.qtype == QTYPE.A:
            for address in self.addresses:
                reply.add_answer(RR(request.q.qname, QTYPE.A, rdata=A(address), ttl=1))
        return reply

    def __enter__(self) -> NameServer:  # noqa: PYI034 - typing.Self needs Python 3.11
        self._server.start_thread()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop()
        self._server.server.server_close()


def _quiet(_: str) -> None:
    """Log nothing, because dnslib prints every query to stdout by default."""
