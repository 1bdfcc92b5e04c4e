"""The page itself: Gradio's components and their event handlers."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache
from gradio.themes import Default
from gradio.utils import get_upload_folder

from deeplab_client import SegmentationError
from deeplab_client._page import view

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from deeplab_client import SegmentationClient
    from deeplab_client._page.view import Answer

_KEPT_SECONDS = 3600  # for files, and for the result of a tab
_KEPT_TABS = 32  # tabs with a kept result; with more tabs, the oldest must send their picture again
_LARGEST_FILE = "64mb"
_WAITING, _AT_A_TIME = 32, 4  # requests of all tabs together

_DOWNLOADS = ("Overlay (PNG)", "Class ids (PNG)", "Details (JSON)")

_CSS = """
.alert { color: #b91c1c; font-weight: 600; overflow-wrap: anywhere; }
.dark .alert { color: #fca5a5; }
table.classes { width: 100%; border-collapse: collapse; border: 0 !important; }
.classes caption { text-align: left; }
.classes th, .classes td { padding: 4px 8px; text-align: right; }
table.classes :is(tr, th, td) { border: 0 !important; border-bottom: 1px solid var(--border-color-primary) !important; }
.classes th:first-child, .classes td:first-child { text-align: left; overflow-wrap: anywhere; }
"""


class Page:
    """The event handlers of the page: Gradio calls them and shows their results in its components.

    Args:
        client: The client for models and masks.
        model: The model that is selected at first, if the server has it.
    """

    def __init__(self, client: SegmentationClient, *, model: str) -> None:
        self._client = client
        self._model = model

    def models(self, chosen: str | None) -> tuple[Any, Any]:
        """Return the models to choose from, unless one is chosen, and a notice about the server."""
        if chosen is not None:
            return gr.skip(), gr.skip()
        try:
            names = [model.name for model in self._client.models() if model.confidence]
        except SegmentationError as error:
            return gr.skip(), _notice(f"The models of the server cannot be listed: {error}")
        if not names:
            return gr.skip(), _notice(
                "The server has no segmentation model with confidence: build the model repository again."
            )
        return gr.Dropdown(choices=names, value=self._model if self._model in names else names[0]), _notice("")

    def segment(self, path: str | None, model: str | None) -> tuple[Answer | None, Any]:
        """Send a picture; return the result to keep, or a notice about the failure."""
        if model is None:  # the notice states why
            return None, gr.skip()
        try:
            return None if path is None else view.ask(self._client, path, model), _notice("")
        except SegmentationError as error:
            return None, _notice(f"The picture was not segmented: {error}")

    def show(self, answer: Answer | None, threshold: float, opacity: float) -> tuple[Any, ...]:
        """Return the picture, the details and their parts; downloads follow later."""
        if answer is None:
            return (
                None,
                gr.Column(visible=False),
                "",
                gr.skip(),
                "",
                *[gr.DownloadButton(interactive=False)] * len(_DOWNLOADS),
            )
        result = answer.at_least(threshold)
        picture: Any = (answer.preview, view.layers(result, answer.preview.size, opacity))
        return (
            gr.AnnotatedImage(picture, color_map=view.colors(result)),
            gr.Column(visible=True),
            view.caption(result),
            gr.Slider(interactive=result.background),  # the threshold needs a background
            view.table(result),
            *[gr.DownloadButton(interactive=False)] * len(_DOWNLOADS),
        )

    def files(self, answer: Answer | None, threshold: float, opacity: float) -> list[Any]:
        """Return the download buttons, with their files."""
        if answer is None:
            return [gr.skip()] * len(_DOWNLOADS)
        paths = [
            save_bytes_to_cache(content, name, get_upload_folder())
            for name, content in view.files(answer, threshold, opacity)
        ]
        return [gr.DownloadButton(value=path, interactive=True) for path in paths]


def _path(payload: Any) -> str | None:  # noqa: ANN401 - Gradio's
    """Return the path of an uploaded file."""
    return None if payload is None else payload.path


def _example(path: Path) -> str:
    """Return the path from which Gradio serves an example."""
    return save_bytes_to_cache(path.read_bytes(), path.name, get_upload_folder())


def _notice(problem: str) -> gr.HTML:
    """Return the HTML of a notice; hidden if there is no problem."""
    return gr.HTML(view.alert(problem) if problem else "", visible=bool(problem))


def build(page: Page, *, title: str, examples: Sequence[Path]) -> gr.Blocks:
    """Return the page with a title and example pictures."""
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(_KEPT_SECONDS // 6, _KEPT_SECONDS)) as blocks:
        answer = gr.State(time_to_live=_KEPT_SECONDS)
        gr.Markdown(f"# {title}")
        notice = gr.HTML(visible=False, padding=False)
        with gr.Row():
            with gr.Column():
                picture = gr.Image(
                    label="Picture", sources=["upload", "webcam", "clipboard"], height=320, buttons=["fullscreen"]
                )
                # Gradio's preprocess decodes the file, and refuses some that the server accepts. A subclass would work
                # too, but Gradio writes a stub file beside its module.
                picture.preprocess = _path
                with gr.Row(visible=bool(examples)):
                    for path in examples:
                        gr.Button(f"Example: {path.name}", size="sm").click(
                            partial(_example, path), outputs=picture, show_progress="hidden", api_visibility="private"
                        )
                model = gr.Dropdown(label="Model", choices=[])
                again = gr.Button("Segment", variant="primary")
            with gr.Column():
                shown = gr.AnnotatedImage(label="Result", buttons=["fullscreen"])
                with gr.Column(visible=False) as details:
                    caption = gr.HTML(padding=False)
                    with gr.Group():
                        threshold = gr.Slider(
                            0,
                            1,
                            0,
                            step=0.01,
                            label="Confidence threshold",
                            info="Less certain pixels become background.",
                        )
                        opacity = gr.Slider(0, 1, 0.5, step=0.01, label="Opacity")
                    table = gr.HTML(padding=False)
                    with gr.Row():
                        downloads = [gr.DownloadButton(label, size="sm", min_width=120) for label in _DOWNLOADS]

        private: dict[str, Any] = {"api_visibility": "private"}
        models: dict[str, Any] = {"fn": page.models, "inputs": model, "outputs": [model, notice], **private}
        controls = [answer, threshold, opacity]
        blocks.load(**models, show_progress="hidden")
        asked = gr.on([picture.change, model.input, again.click], **models, show_progress="hidden").then(
            page.segment, [picture, model], [answer, notice], show_progress_on=shown, **private
        )
        for event in (asked.then, threshold.release, opacity.release):
            event(
                page.show,
                controls,
                [shown, details, caption, threshold, table, *downloads],
                show_progress_on=shown,
                **private,
            ).then(page.files, controls, downloads, show_progress="hidden", **private)
    return blocks.queue(max_size=_WAITING, default_concurrency_limit=_AT_A_TIME, api_open=False)


def serve(blocks: gr.Blocks, *, host: str, port: int) -> str:
    """Start to serve the page; return its URL.

    Raises:
        OSError: The port is in use.
    """
    _, url, _ = blocks.launch(
        server_name=host,
        server_port=port or None,  # a free one
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
        run_history=False,
        footer_links=[],
        allowed_paths=[],
        max_file_size=_LARGEST_FILE,
        state_session_capacity=_KEPT_TABS,
        show_error=True,
        css=_CSS,
        theme=Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    )
    return url
