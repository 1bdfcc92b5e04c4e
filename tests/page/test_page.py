"""`deeplab page` as a user sees it, in a real Chromium, with a real server behind it."""

from __future__ import annotations

import io
import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect
from triton_process import wait_until
from tritonclient import grpc as triton

from benchmarks import toy
from deeplab_client import SegmentationClient

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Server
    from playwright.sync_api import Browser, Page

    from deeplab_client import Segmentation

pytestmark = pytest.mark.page

MODEL = "segment_resnet50"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """Two classes, and where they meet some pixels that are less certain."""
    return two_classes(tmp_path / "two.png", 3, 8)


def two_classes(path: Path, left: int, right: int) -> Path:
    pixels = np.empty((64, 96, 3), np.uint8)
    pixels[:, :40], pixels[:, 40:] = toy.COLORS[left], toy.COLORS[right]
    Image.fromarray(pixels).save(path)
    return path


def drop(page: Page, path: Path) -> None:
    page.locator("input[type=file]").first.set_input_files(path)


def set_slider(page: Page, label: str, value: float) -> None:
    box = page.get_by_label(f"number input for {label}")
    box.fill(str(value))
    box.blur()


def expect_classes(page: Page, result: Segmentation) -> None:
    """Wait until the table shows a result, and nothing else."""
    rows = page.locator("tbody tr")
    expect(rows).to_have_text([re.compile(rf"{name}\s*{share:.1%}") for name, share in result.fractions.items()])


def downloaded(page: Page, button: str) -> tuple[str, bytes]:
    with page.expect_download() as waiting:
        page.get_by_role("link", name=button).or_(page.get_by_role("button", name=button)).click()
    return waiting.value.suggested_filename, waiting.value.path().read_bytes()


def requests(server: Server) -> int:
    with triton.InferenceServerClient(server.url.removeprefix("grpc://")) as client:
        statistics: Any = client.get_inference_statistics(MODEL)
        return statistics.model_stats[0].inference_stats.success.count


def asked(server: Server, picture: Path) -> Segmentation:
    with SegmentationClient(server.url) as client:
        return client.segment(picture, confidence=True)


def test_a_picture_gives_its_classes_and_controls_send_nothing(page: Page, server: Server, picture: Path) -> None:
    result = asked(server, picture)
    before = requests(server)
    drop(page, picture)
    expect_classes(page, result)
    expect(page.get_by_text("64 pixels")).to_contain_text(f"96 x 64 pixels, mostly {result.top_class}")
    for name in result.fractions:
        if name != result.class_names[0]:
            expect(page.get_by_role("button", name=name, exact=True)).to_be_visible()  # the legend
    certain = result.at_least(0.9)
    assert certain.fractions != result.fractions
    set_slider(page, "Confidence threshold", 0.9)
    expect_classes(page, certain)
    set_slider(page, "Opacity", 0.25)
    overlay = np.asarray(certain.overlay(picture, alpha=0.25))
    expected = certain.to_dict()

    def is_overlay(content: bytes) -> bool:
        return np.array_equal(np.asarray(Image.open(io.BytesIO(content))), overlay)

    def is_ids(content: bytes) -> bool:
        return np.array_equal(np.asarray(Image.open(io.BytesIO(content))), certain.mask)

    def is_details(content: bytes) -> bool:
        details = json.loads(content)
        return details.keys() == expected.keys() and details["classes"] == expected["classes"]

    files = {"Overlay": ("overlay.png", is_overlay), "Class ids": ("ids.png", is_ids), "Details": ("json", is_details)}
    for button, (suffix, is_new) in files.items():

        def has_changed(button: str = button, suffix: str = suffix, is_new: Callable[[bytes], bool] = is_new) -> bool:
            name, content = downloaded(page, button)
            assert name == f"two.png.{suffix}"
            return is_new(content)

        wait_until(has_changed, what=f"{button} of the new threshold and opacity")
    assert requests(server) - before == 1


def test_an_example_is_a_click_away(page: Page) -> None:
    page.get_by_role("button", name="Example: cat.png").click()
    expect(page.get_by_text("451 x 300 pixels")).to_be_visible()


def test_untrained_weights_are_shown_in_red(page: Page, picture: Path) -> None:
    drop(page, picture)
    expect(page.get_by_text("weights COCO_WITH_VOC_LABELS_V1")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)
    page.get_by_label("Model").click()
    page.get_by_role("option", name="segment_untrained").click()
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("UNTRAINED WEIGHTS")
    red, green, blue = map(int, re.findall(r"\d+", alert.evaluate("element => getComputedStyle(element).color")))
    assert red > 150
    assert max(green, blue) < 60


def test_a_refused_picture_shows_a_notice_and_the_next_one_is_segmented(
    page: Page, picture: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("no picture\n")
    drop(page, text)
    expect(page.get_by_role("alert")).to_contain_text("cannot be opened as an image")
    page.get_by_label("Remove Image").click()
    expect(page.get_by_role("alert")).to_have_count(0)
    large = tmp_path / "large.jpg"
    with large.open("wb") as file:
        file.truncate(65 << 20)
    drop(page, large)
    expect(page.get_by_text(re.compile("maximum allowed size"))).to_be_visible()
    drop(page, picture)
    expect(page.get_by_text("96 x 64 pixels")).to_be_visible()


def test_two_browsers_do_not_see_each_others_pictures(
    page: Page, browser: Browser, server: Server, picture: Path, tmp_path: Path
) -> None:
    other_picture = two_classes(tmp_path / "other.png", 5, 12)
    context = browser.new_context(viewport={"width": 390, "height": 844})
    other = context.new_page()
    other.goto(page.url)
    expect(other.get_by_label("Model")).to_have_value(MODEL)
    drop(page, picture)
    drop(other, other_picture)
    for tab, shown in ((page, picture), (other, other_picture)):
        expect_classes(tab, asked(server, shown))
        set_slider(tab, "Confidence threshold", 0.9)
    for tab, shown in ((page, picture), (other, other_picture)):
        expect_classes(tab, asked(server, shown).at_least(0.9))
    overflow = other.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert overflow <= 0, "on a phone, nothing is wider than the screen"
    context.close()


def test_a_stopped_server_shows_a_notice_and_works_again_later(
    page: Page, browser: Browser, server: Server, picture: Path
) -> None:
    server.stop()
    drop(page, picture)
    expect(page.get_by_role("alert")).to_contain_text(f"127.0.0.1:{server.port}")
    newcomer = browser.new_page()
    newcomer.goto(page.url)
    expect(newcomer.get_by_role("alert")).to_contain_text(f"127.0.0.1:{server.port}")
    server.start()
    drop(newcomer, picture)
    for tab in (page, newcomer):

        def is_segmented(tab: Page = tab) -> bool:
            tab.get_by_role("button", name="Segment", exact=True).click()
            tab.wait_for_timeout(500)
            return tab.get_by_text("96 x 64 pixels").is_visible()

        # gRPC connects again after a pause of up to 2 seconds.
        wait_until(is_segmented, what="a result of the server that is back")
        expect(tab.get_by_role("alert")).to_have_count(0)
    newcomer.close()
