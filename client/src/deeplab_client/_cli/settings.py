"""How pictures are segmented and drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deeplab_client._cli.formats import Format


@dataclass(frozen=True, slots=True)
class Settings:
    """Options of the command line for segmenting and drawing.

    Attributes:
        model: Name of the ensemble.
        confidence: Threshold below which pixels become background; 0 only requests the confidence, None does not.
        tile: Side of a tile in pixels; None for whole pictures.
        overlap: Share of a tile that its neighbor also covers.
        alpha: Opacity of an overlay, 0 to 1.
        legend: Whether an overlay has a legend.
    """

    model: str
    confidence: float | None
    tile: int | None
    overlap: float
    alpha: float
    legend: bool

    def about(self, kind: Format) -> dict[str, Any]:
        """Return the settings that an output of this format depends on, without unset ones."""
        about: dict[str, Any] = {"model": self.model, "confidence": self.confidence}
        if self.tile is not None:
            about |= {"tile": self.tile, "overlap": self.overlap}
        if kind is Format.OVERLAY:
            about |= {"alpha": self.alpha, "legend": self.legend}
        return {name: value for name, value in about.items() if value is not None}
