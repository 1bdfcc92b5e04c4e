"""The web page; only `blocks` imports Gradio, which the extra `page` installs."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from typing import TYPE_CHECKING

from deeplab_client._errors import missing_extra

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from deeplab_client import SegmentationClient

# Set before Gradio is loaded: no usage data, and no requests to Hugging Face.
_SILENT = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

_TITLE = "Segment a picture"


def run(
    client: SegmentationClient,
    *,
    model: str,
    examples: Sequence[Path],
    host: str,
    port: int,
    ready: Callable[[str], None],
) -> None:
    """Serve the page until Ctrl-C or SIGTERM; its data is in memory and in a temporary folder.

    Args:
        client: The client for models and masks.
        model: The model that is selected at first, if the server has it.
        examples: Pictures to offer.
        host: Address to listen on.
        port: Port to listen on; 0 for a free one.
        ready: Called with the URL of the page.

    Raises:
        KeyboardInterrupt: Ctrl-C.
        ModuleNotFoundError: Gradio is not installed.
        OSError: The port is in use.
    """
    with tempfile.TemporaryDirectory(prefix="deeplab-page-") as folder:
        os.environ.update(_SILENT, GRADIO_TEMP_DIR=folder)
        try:
            from deeplab_client._page import blocks  # noqa: PLC0415 - an extra that takes seconds to load
        except ModuleNotFoundError as error:
            if error.name != "gradio":
                raise
            raise missing_extra("the page", "gradio", "page") from error
        page = blocks.build(blocks.Page(client, model=model), title=_TITLE, examples=examples)
        ended = threading.Event()
        signal.signal(signal.SIGTERM, lambda _number, _frame: ended.set())
        try:
            ready(blocks.serve(page, host=host, port=port))
            ended.wait()
        finally:
            page.close(verbose=False)
