"""Reading the certificate files of the TLS options."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from deeplab_client._errors import TLSError
from deeplab_client._limits import check_descriptors, limit_met

if TYPE_CHECKING:
    import os

    from deeplab_client._faults import CallContext
    from deeplab_client._options import TLS


Pem: TypeAlias = "tuple[bytes | None, bytes | None, bytes | None]"
"""Trusted certificates, the client's key, its certificates."""


def context_of(tls: TLS, where: CallContext) -> ssl.SSLContext:
    """Return a context that checks the server's certificate and name.

    Raises:
        ClientLimitError: This process cannot open more files.
        TLSError: A file cannot be read or is not valid.
    """
    try:
        context = ssl.create_default_context(cafile=tls.ca_file)
        if tls.certificate_file is not None and tls.key_file is not None:
            # An empty password, because the default asks for one on the terminal.
            context.load_cert_chain(tls.certificate_file, tls.key_file, password="")
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        raise limit_met(error) or _unreadable(tls, error, where) from error
    if not context.cert_store_stats()["x509_ca"]:
        check_descriptors(1)  # OpenSSL ignores certificate files that it could not open
    context.set_alpn_protocols(["http/1.1"])
    return context


def pem_of(tls: TLS, where: CallContext) -> Pem:
    """Return the trusted certificates, the key and the client's certificates, each None if not given.

    Raises:
        ClientLimitError: This process cannot open more files.
        TLSError: A file cannot be read or is not valid.
    """
    context_of(tls, where)  # gRPC reports a bad file only in its log, and later each failed connection
    try:
        return _read(tls.ca_file), _read(tls.key_file), _read(tls.certificate_file)
    except OSError as error:
        raise limit_met(error) or _unreadable(tls, error, where) from error


def _read(path: str | os.PathLike[str] | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()


def _unreadable(tls: TLS, error: Exception, where: CallContext) -> TLSError:
    return TLSError(f"no TLS connection to {where.url}: cannot use the files of {tls}: {error}", model=where.model)
