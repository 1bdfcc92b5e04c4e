"""A certificate authority for tests, with signed certificates of a server and a client."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trustme

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM files.

    Attributes:
        ca: Of the authority.
        server: The server's certificate, for localhost and 127.0.0.1.
        server_key: Its key.
        client: A client's certificate.
        client_key: Its key.
        stranger: Of an authority that has signed nothing.
    """

    ca: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path
    stranger: Path

    def server_context(self, *, mutual: bool) -> ssl.SSLContext:
        """Return the TLS context of a server; with `mutual`, it requires client certificates."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.server, self.server_key)
        if mutual:
            context.load_verify_locations(self.ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def issue(folder: Path) -> Certificates:
    """Write the files into an existing folder."""
    authority = trustme.CA()
    server = authority.issue_cert("localhost", "127.0.0.1")
    client = authority.issue_cert("client@example.org")
    files = Certificates(*(folder / f"{name}.pem" for name in Certificates.__dataclass_fields__))
    authority.cert_pem.write_to_path(str(files.ca))
    trustme.CA().cert_pem.write_to_path(str(files.stranger))
    for leaf, certificate, key in (
        (server, files.server, files.server_key),
        (client, files.client, files.client_key),
    ):
        leaf.private_key_pem.write_to_path(str(key))
        for number, blob in enumerate(leaf.cert_chain_pems):
            blob.write_to_path(str(certificate), append=number > 0)
    return files
