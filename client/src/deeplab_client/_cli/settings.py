"""How pictures are segmented and drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deeplab_client._cli.formats import Format


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line says of how pictures are segmented and drawn.

    Attributes:
        model: Name of the ensemble.
        confidence: Less certain pixels become background; 0 only asks for the confidence, None does not.
        tile: Pixels of a side of a tile; None for whole pictures.
        overlap: The share of a tile that its neighbor covers too.
        alpha: Opacity of an overlay.
        legend: Whether an overlay has one.
    """

    model: str
    confidence: float | None
    tile: int | None
    overlap: float
    alpha: float
    legend: bool

    def about(self, kind: Format) -> dict[str, Any]:
        """Return what an output of a format depends on; what is not asked for is left out."""
        about: dict[str, Any] = {"model": self.model, "confidence": self.confidence}
        if self.tile is not None:
            about |= {"tile": self.tile, "overlap": self.overlap}
        if kind is Format.OVERLAY:
            about |= {"alpha": self.alpha, "legend": self.legend}
        return {name: value for name, value in about.items() if value is not None}
