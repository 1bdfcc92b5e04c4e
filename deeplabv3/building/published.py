"""The published figures of the models, computed again on models with untrained weights."""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from deeplabv3.building import tracing
from deeplabv3.building.plan import MEAN, STD
from deeplabv3.models import figures
from deeplabv3.models.names import UNTRAINED, direct_name
from deeplabv3.models.variants import load_model
from deeplabv3.models.weights import WeightsSource

_log = logging.getLogger("build_models")


def describe(variants: Sequence[str]) -> dict[str, list[figures.Figure]]:
    """Return the published figures of some variants beside those found here."""
    source = WeightsSource(UNTRAINED)
    described: dict[str, list[figures.Figure]] = {}
    for variant in variants:
        _log.info("%s: tracing with and without its auxiliary head", direct_name(variant))
        model = load_model(variant, source)
        sizes: list[int] = []
        with tempfile.TemporaryDirectory() as folder:
            for traced in (
                tracing.Tracer(model, aux=True).direct(),
                tracing.Tracer(model).core(mean=MEAN, std=STD),
            ):
                file = Path(folder, "model.pt")
                tracing.save(traced, file, {})
                sizes.append(file.stat().st_size)
        described[variant] = figures.describe(variant, model, traced_bytes=sizes[0], served_bytes=sizes[1])
    return described
