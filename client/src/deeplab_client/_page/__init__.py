"""The page to drop a picture on; only `blocks` imports Gradio, which the extra `page` brings."""

from __future__ import annotations

import os
import tempfile
import threading
from typing import TYPE_CHECKING

from deeplab_client._errors import missing_extra

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from deeplab_client import SegmentationClient

# Set before Gradio is loaded: nothing is told to anybody, and nothing is asked of Hugging Face.
_SILENT = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def run(
    client: SegmentationClient,
    *,
    model: str | None,
    title: str,
    examples: Sequence[Path],
    host: str,
    port: int,
    ready: Callable[[str], None],
) -> None:
    """Serve the page until the process is interrupted; pictures and results are kept in a folder that goes then.

    Args:
        client: Asked for models and masks.
        model: The model that is chosen at first; None for the first one of the server.
        title: Shown at the top of the page.
        examples: Pictures to choose from.
        host: Address to listen at.
        port: Port to listen at; 0 for a free one.
        ready: Called with the URL of the page.

    Raises:
        ModuleNotFoundError: Gradio is not installed.
        OSError: The port is taken.
    """
    with tempfile.TemporaryDirectory(prefix="deeplab-page-") as folder:
        os.environ.update(_SILENT, GRADIO_TEMP_DIR=folder)
        try:
            from deeplab_client._page import blocks  # noqa: PLC0415 - it takes seconds, and is of an extra
        except ModuleNotFoundError as error:
            if error.name != "gradio":
                raise
            raise missing_extra("the page", "gradio", "page") from error
        page = blocks.build(blocks.Page(client, model=model), title=title, examples=examples)
        try:
            ready(blocks.serve(page, host=host, port=port))
            threading.Event().wait()
        finally:
            page.close()
