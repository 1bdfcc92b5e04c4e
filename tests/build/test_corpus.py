"""Each file of the corpus is taken with the pixels that it was made from, or refused with a message that says why."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import image_ops
import numpy as np
import pytest
from corpus import bmp, gif, heif, jpeg, mutants, netpbm, others, png, reference, tiff, webp
from corpus.case import Case, Judged, Refused, Taken

if TYPE_CHECKING:
    from corpus.case import Pixels

pytestmark = pytest.mark.build

FORMATS = (png, jpeg, webp, bmp, netpbm, gif, tiff, heif, others)
CASES = [case for made in FORMATS for case in made.cases()]

MAX_PIXELS = 1_000_000
# The most that a file may cost under this limit, whatever it declares; one of 37 x 23 pixels takes a thousandth of it.
SECONDS = 2.0
KILOBYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a file: pixels, or the message of a refusal."""

    pixels: Pixels | None
    message: str = ""

    @property
    def finding(self) -> str:
        """Return the message without the remedy, which may list every format."""
        return self.message.split(";")[0]


def _peak() -> tuple[int, int]:
    """Return what this process holds and held at most since it was last asked for: kilobytes."""
    held = re.findall(r"Vm(?:HWM|RSS):\s+(\d+)", Path("/proc/self/status").read_text())
    return int(held[1]), int(held[0])


def outcome(case: Case) -> Outcome:
    """Decode a file as the server does; every error but a refusal, and every unbounded cost, is a failure."""
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak: proc(5)
    before, _ = _peak()
    start = time.process_time()
    try:
        result = Outcome(np.asarray(image_ops.decode(case.data, max_pixels=MAX_PIXELS)))
    except image_ops.InvalidImageError as exc:
        result = Outcome(None, str(exc))
    assert time.process_time() - start < SECONDS, "it takes too long"
    assert _peak()[1] - before < KILOBYTES, "it takes too much memory"
    if result.pixels is None:
        # The finding; the remedy.
        assert re.fullmatch(r"th(e|is) [^\n]{10,200}; [^\n]{5,200}[^\s:;,]", result.message), result.message
    return result


def difference(pixels: Pixels, expected: Taken) -> str:
    """Return how pixels differ from the expected ones; "" if they do not."""
    if pixels.shape != expected.pixels.shape:
        return f"the shape is {pixels.shape}, not {expected.pixels.shape}"
    apart = np.abs(pixels.astype(np.int64) - expected.pixels).max(axis=2)
    if expected.where is not None:
        apart = np.where(expected.where, apart, 0)
    if apart.max() <= expected.tolerance:
        return ""
    return f"{(apart > expected.tolerance).mean():.1%} of the pixels differ, by up to {apart.max()}"


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_file_is_taken_or_refused(case: Case) -> None:
    result, verdict = outcome(case), case.verdict
    if isinstance(verdict, Refused):
        assert result.pixels is None, "it is taken"
        assert re.search(verdict.message, result.finding, re.IGNORECASE), result.message
    elif isinstance(verdict, Taken) and result.pixels is None:
        rare = verdict.or_refused and re.search(verdict.or_refused, result.finding, re.IGNORECASE)
        assert rare, f"it is refused: {result.message}"
    elif isinstance(verdict, Taken):
        assert result.pixels is not None
        assert not difference(result.pixels, verdict)


def _complaint(case: Case, verdict: Judged) -> str:
    """Return what is wrong with the result of a damaged file, or ""."""
    pixels = outcome(case).pixels
    if pixels is None or not verdict.reference:
        return ""
    try:
        expected = reference.decode(verdict.reference, case.data)
    except reference.RefusedByReferenceError as exc:
        if verdict.undamaged is None or np.array_equal(pixels, verdict.undamaged):
            return ""
        return f"it is taken, with other pixels than before the damage, and the reference says: {exc}"
    return difference(pixels, Taken(expected, tolerance=verdict.tolerance))


@pytest.mark.parametrize("family", mutants.FAMILIES)
def test_a_damaged_file_is_refused_or_has_the_pixels_of_the_reference(family: str) -> None:
    complaints: dict[str, str] = {}
    for case in mutants.cases(family):
        assert isinstance(case.verdict, Judged)
        try:
            complaint = _complaint(case, case.verdict)
        except Exception as exc:  # noqa: BLE001 - collected, to be shown beside the others
            complaint = repr(exc)
        if complaint:
            complaints[case.name] = complaint
    assert not complaints


def test_the_corpus_is_large_and_its_names_are_unique() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names)) >= 300
    kinds = [type(case.verdict) for case in CASES]
    assert min(kinds.count(Taken), kinds.count(Refused)) >= 100
