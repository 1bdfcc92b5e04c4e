"""Where the time of one call went."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds that one call took, by what it did.

    Attributes:
        encode: Reading the image and making the bytes that travel.
        wait: The network and the server, retries and the pauses before them included.
        decode: Checking the reply and making the result.
    """

    encode: float
    wait: float
    decode: float
