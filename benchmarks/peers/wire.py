"""How a picture is asked for: bytes in, class ids out, over each server's own HTTP."""

from __future__ import annotations

import http.client
import json
import struct
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

# Triton's binary extension: the length of the JSON that stands before the tensors, in requests and replies.
JSON_LENGTH = "Inference-Header-Content-Length"
OK = 200


@dataclass(frozen=True, slots=True)
class Wire:
    """Where and in which form a server takes pictures.

    Attributes:
        url: of a POST.
        tensors: whether body and reply are those of Triton's HTTP protocol, with IMAGE and MASK as binary tensors;
            otherwise they are the picture's and the mask's bytes and nothing else.
    """

    url: str
    tensors: bool = False

    def request(self, image: bytes) -> tuple[dict[str, str], bytes]:
        """Return headers and body. Nobody compresses: LitServe would, and no other server does."""
        headers = {"Content-Type": "image/jpeg", "Accept-Encoding": "identity"}
        if not self.tensors:
            return headers, image
        tensor = struct.pack("<I", len(image)) + image
        parameters = {"binary_data_size": len(tensor)}
        head = json.dumps(
            {
                "inputs": [{"name": "IMAGE", "shape": [1, 1], "datatype": "BYTES", "parameters": parameters}],
                "outputs": [{"name": "MASK", "parameters": {"binary_data": True}}],
            }
        ).encode()
        return headers | {"Content-Type": "application/octet-stream", JSON_LENGTH: str(len(head))}, head + tensor

    def mask(self, headers: Mapping[str, str], body: bytes) -> bytes:
        """Return the class ids in a reply with status 200: one byte a pixel, row by row."""
        return body[int(headers[JSON_LENGTH]) :] if self.tensors else body

    def ask(self, image: bytes, *, timeout: float) -> bytes:
        """Return the mask of one picture.

        Raises:
            OSError: no connection, or none in time.
            http.client.HTTPException: another reply than a mask.
        """
        address = urlsplit(self.url)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=timeout)
        try:
            headers, body = self.request(image)
            connection.request("POST", address.path, body, headers)
            reply = connection.getresponse()
            content = reply.read()
            if reply.status != OK:
                raise http.client.HTTPException(f"{self.url}: status {reply.status}: {content[:300]!r}")
            return self.mask(dict(reply.headers), content)
        finally:
            connection.close()

    def as_json(self) -> dict[str, Any]:
        """Return what `Wire(**...)` takes."""
        return asdict(self)
