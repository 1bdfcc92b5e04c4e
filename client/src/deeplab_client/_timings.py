"""Where the time of one call went."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds that one call spent.

    Attributes:
        encode: Reading the image and making the request of it.
        wait: From the first attempt's start to the answer's arrival, retries and pauses included.
        decode: Checking the answer and making the result of it.
    """

    encode: float
    wait: float
    decode: float
