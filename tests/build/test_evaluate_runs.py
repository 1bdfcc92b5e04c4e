"""Whole runs with a model that tells classes by color: right figures, interrupted and resumed, refused."""

from __future__ import annotations

import functools
import json
import os
import signal
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import coco_data
import numpy as np
import pictures
import pytest
from coco_data import HALF, PERFECT, Scene

from deeplab_client import MismatchedReplyError, RetryPolicy, SegmentationClient, voc
from deeplab_client.testing import FakeTransport
from deeplabv3.evaluation import EvaluationError, Interrupted, served
from deeplabv3.evaluation.coco import coco_with_voc_labels
from deeplabv3.evaluation.counting import Figures, Tally
from deeplabv3.evaluation.measuring import measure
from deeplabv3.evaluation.predictors import Answer, Classes, PredictorFacts, agreed_class_names
from deeplabv3.evaluation.records import RecordFile
from deeplabv3.evaluation.report import draw, report, table
from deeplabv3.evaluation.served import EnsemblePredictor, ServedModel, Server

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from deeplabv3.evaluation.datasets import Sample

pytestmark = pytest.mark.build

FACTS = PredictorFacts(
    name="direct toy",
    kind="direct",
    model="toy",
    version="1",
    weights="toy",
    resolution="own size",
    resize=None,
    device=None,
)


NAMELESS = Classes(21, None)


@dataclass
class ByColor:
    """Predicts the class whose color a pixel has; `wrong` turns what it says about the first so many pixels."""

    facts: PredictorFacts = FACTS
    wrong: int = 0
    before: Callable[[Sample], object] = lambda _: None
    classes: Classes = NAMELESS

    def predict(self, sample: Sample) -> Answer:
        self.before(sample)
        weights = np.array([1 << 16, 1 << 8, 1])
        keys = {int(color @ weights): class_id for class_id, color in enumerate(voc.PALETTE[:21].astype(int))}
        flat = np.asarray(sample.image).astype(int) @ weights
        values, inverse = np.unique(flat, return_inverse=True)
        mask = np.array([keys[int(value)] for value in values])[inverse].ravel()
        mask[: self.wrong] = (mask[: self.wrong] + 1) % 21
        return Answer(mask.reshape(flat.shape), sample.target)

    def close(self) -> None: ...


def run(
    folder: coco_data.CocoFolder,
    state: Path,
    predictors: Sequence[ByColor] = (ByColor(),),
    *,
    concurrency: int = 3,
    limit: int | None = None,
    on_progress: Callable[[int], None] = lambda _: None,
    on_stopping: Callable[[int], None] = lambda _: None,
) -> Tally:
    dataset = coco_with_voc_labels(folder.annotations, folder.images)
    facts = {predictor.facts.name: repr(predictor.facts) for predictor in predictors}
    return measure(
        dataset,
        predictors,
        dataset.ids[:limit],
        RecordFile(state, {"predictors": facts, "limit": limit}),
        classes=21,
        concurrency=concurrency,
        on_progress=on_progress,
        on_stopping=on_stopping,
    )


def done_images(state: Path) -> list[str]:
    _, *lines = state.read_text().splitlines()
    return [json.loads(line)["image"] for line in lines]


def figures(tally: Tally) -> Figures:
    return Figures.of(tally.matrices["direct toy"])


def test_a_perfect_model_gets_everything(tmp_path: Path) -> None:
    found = figures(run(coco_data.write(tmp_path, PERFECT), tmp_path / "state"))
    assert found.mean_iou == found.pixel_accuracy == found.mean_accuracy == 1.0
    assert [voc.CLASS_NAMES[class_id] for class_id in range(21) if class_id not in found.absent] == [
        *("__background__", "car", "cat", "dog", "person")
    ]
    # All pixels but those where the car and the person cross.
    assert found.pixels == len(PERFECT) * 520 * 520 - 100 * 100


def test_a_half_wrong_model_gets_the_constructed_figures(tmp_path: Path) -> None:
    found = figures(run(coco_data.write(tmp_path, HALF), tmp_path / "state"))
    for name, expected in coco_data.HALF_IOU.items():
        assert found.class_iou[voc.CLASS_NAMES.index(name)] == pytest.approx(expected, abs=1e-12), name
    assert found.mean_iou == pytest.approx(coco_data.HALF_MEAN_IOU, abs=1e-12)
    assert found.pixel_accuracy == pytest.approx(coco_data.HALF_PIXEL_ACCURACY, abs=1e-12)
    assert len(found.absent) == 17


def test_a_file_that_has_changed_is_counted_again_and_once(tmp_path: Path) -> None:
    folder, state = coco_data.write(tmp_path, HALF), tmp_path / "state"
    once = run(folder, state)
    picture = next(path for path in sorted(folder.images.iterdir()))
    os.utime(picture, ns=(1, 1))
    for already_done in (len(HALF) - 1, len(HALF)):
        progress: list[int] = []
        again = run(folder, state, on_progress=progress.append)
        assert progress[0] == already_done
        assert again.done == once.done
        assert np.array_equal(again.matrices["direct toy"], once.matrices["direct toy"])


def test_an_empty_picture_is_all_background(tmp_path: Path) -> None:
    found = figures(run(coco_data.write(tmp_path, [Scene()]), tmp_path / "state"))
    assert found.mean_iou == 1.0
    assert found.pixels == 520 * 520
    assert len(found.absent) == 20


@pytest.mark.parametrize("concurrency", [1, 2, 16])
def test_the_number_of_images_in_flight_is_bounded_and_changes_nothing(tmp_path: Path, concurrency: int) -> None:
    lock, now, most = threading.Lock(), 0, 0
    barrier = threading.Barrier(min(concurrency, 8))

    def enter(_: Sample) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        barrier.wait(timeout=30)
        with lock:
            now -= 1

    folder = coco_data.write(tmp_path, (PERFECT + HALF)[:8])
    tally = run(folder, tmp_path / "state", [ByColor(before=enter)], concurrency=concurrency)
    alone = run(folder, tmp_path / "other", concurrency=1)
    np.testing.assert_array_equal(tally.matrices["direct toy"], alone.matrices["direct toy"])
    assert most <= concurrency


def test_agreement_is_counted_where_resolutions_are_the_same(tmp_path: Path) -> None:
    others = [
        ByColor(replace(FACTS, name="second"), wrong=520),
        ByColor(replace(FACTS, name="third", resolution="shorter side 520"), wrong=1),
    ]
    tally = run(coco_data.write(tmp_path, PERFECT[:2]), tmp_path / "state", [ByColor(), *others])
    # Over all pixels, one row of each picture apart.
    assert tally.agreements == {("direct toy", "second"): (2 * 519 * 520, 2 * 520 * 520)}


def interrupting(number: signal.Signals, after: int) -> Callable[[int], None]:
    def on_progress(done: int) -> None:
        if done == after:
            os.kill(os.getpid(), number)

    return on_progress


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path, number: signal.Signals) -> None:
    folder, state = coco_data.write(tmp_path, PERFECT + HALF), tmp_path / "state"
    handlers = signal.getsignal(number)
    written: list[list[str]] = []

    def on_stopping(in_flight: int) -> None:
        assert in_flight == 1
        written.append(done_images(state))

    with pytest.raises(Interrupted) as caught:
        run(folder, state, concurrency=1, on_progress=interrupting(number, 3), on_stopping=on_stopping)
    # Before it waits for the images in flight, because an impatient user may kill it.
    assert written == [["100", "101", "102"]]
    assert caught.value.number == number
    assert signal.getsignal(number) is handlers
    done = done_images(state)
    assert done == ["100", "101", "102", "103"]

    asked: list[str] = []
    tally = run(folder, state, [ByColor(before=lambda sample: asked.append(sample.name))])
    assert not {f"{int(image_id):012d}.png" for image_id in done} & set(asked)
    assert len(asked) == len(PERFECT + HALF) - len(done)
    whole = run(folder, tmp_path / "whole")
    np.testing.assert_array_equal(tally.matrices["direct toy"], whole.matrices["direct toy"])


def test_a_second_signal_does_not_wait_for_a_model_that_hangs(tmp_path: Path) -> None:
    folder, state = coco_data.write(tmp_path, PERFECT), tmp_path / "state"
    hanging, release = threading.Event(), threading.Event()

    def hang(sample: Sample) -> None:
        if sample.name == "000000000102.png":
            hanging.set()
            assert release.wait(timeout=60)

    def twice(done: int) -> None:
        if done == len(PERFECT) - 1:  # all others
            assert hanging.wait(timeout=60)
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted) as caught:
        run(folder, state, [ByColor(before=hang)], concurrency=2, on_progress=twice)
    release.set()
    assert (caught.value.number, caught.value.abandoned) == (signal.SIGTERM, 1)
    assert len(done_images(state)) == len(PERFECT) - 1


def test_an_image_that_cannot_be_read_stops_the_run_and_keeps_the_rest(tmp_path: Path) -> None:
    folder, state = coco_data.write(tmp_path, PERFECT), tmp_path / "state"
    broken = folder.images / "000000000103.png"
    data = broken.read_bytes()
    broken.write_bytes(data[:100])
    with pytest.raises(EvaluationError, match=r"000000000103\.png cannot be decoded"):
        run(folder, state, concurrency=1)
    assert done_images(state) == ["100", "101", "102"]
    broken.write_bytes(data)
    assert figures(run(folder, state)).mean_iou == 1.0


def test_a_model_that_fails_is_named_with_the_image(tmp_path: Path) -> None:
    def fail(sample: Sample) -> None:
        if sample.name == "000000000101.png":
            raise EvaluationError("direct toy: the server went away")

    folder = coco_data.write(tmp_path, PERFECT)
    with pytest.raises(EvaluationError, match=r"^image 000000000101\.png: direct toy: the server went away$"):
        run(folder, tmp_path / "state", [ByColor(before=fail)])


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    folder, state = coco_data.write(tmp_path, HALF), tmp_path / "state"
    run(folder, state, limit=1)
    with pytest.raises(EvaluationError, match=r"\(limit was 1 and is 2\); .*--restart"):
        run(folder, state, limit=2)
    more = [ByColor(), ByColor(replace(FACTS, name="second"))]
    with pytest.raises(EvaluationError, match=r"\(predictors second was not there and is "):
        run(folder, state, more, limit=1)


@pytest.mark.parametrize(
    "content",
    [
        *("", "{}", '{"settings": {}', "[]", "null", '"text"', "{}\n", "[]\n", "null\n", '"text"\n', "no JSON\n"),
        '{"settings": {}}',
    ],
)
def test_a_damaged_state_is_refused(tmp_path: Path, content: str) -> None:
    folder, state = coco_data.write(tmp_path, HALF), tmp_path / "state"
    state.write_text(content)
    with pytest.raises(EvaluationError, match="is not the state file of an evaluation; discard it with --restart"):
        run(folder, state)
    assert state.read_text() == content


def test_a_record_of_a_class_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    folder, state = coco_data.write(tmp_path, HALF), tmp_path / "state"
    run(folder, state)
    header, first, second = state.read_text().splitlines()
    damaged = json.dumps(json.loads(first) | {"matrices": {"direct toy": [[0, 21, 1]]}})
    state.write_text(f"{header}\n{damaged}\n{second}\n")
    with pytest.raises(EvaluationError, match="of an evaluation; discard it with --restart"):
        run(folder, state)


@pytest.mark.parametrize("line", ["", "{", "null", "{}"])
def test_a_damaged_record_is_refused(tmp_path: Path, line: str) -> None:
    folder, state = coco_data.write(tmp_path, HALF), tmp_path / "state"
    run(folder, state)
    header, first, second = state.read_text().splitlines()
    state.write_text(f"{header}\n{first}\n{line}\n{second}\n")
    with pytest.raises(EvaluationError, match="is not the state file of an evaluation; discard it with --restart"):
        run(folder, state)


@pytest.mark.parametrize("left", [1, 40, -1])
def test_a_torn_last_line_is_dropped_and_its_image_counted_again(tmp_path: Path, left: int) -> None:
    """A run that is killed while it writes leaves any part of a line."""
    folder, state = coco_data.write(tmp_path, HALF), tmp_path / "state"
    whole = run(folder, state, concurrency=1)
    header, first, second = state.read_text().splitlines()
    state.write_text(f"{header}\n{first}\n{second[:left]}")
    asked: list[str] = []
    tally = run(folder, state, [ByColor(before=lambda sample: asked.append(sample.name))])
    assert asked == ["000000000101.png"]
    assert done_images(state) == ["100", "101"]
    np.testing.assert_array_equal(tally.matrices["direct toy"], whole.matrices["direct toy"])
    # Nothing is left to do, and what was counted is read back from the file alone.
    again = run(folder, state, [ByColor(before=lambda sample: asked.append(sample.name))])
    assert asked == ["000000000101.png"]
    np.testing.assert_array_equal(again.matrices["direct toy"], whole.matrices["direct toy"])
    assert again.seconds == tally.seconds > 0


def test_every_image_is_on_disk_as_soon_as_it_is_counted(tmp_path: Path) -> None:
    """Whoever reads the file while a run writes it finds whole lines."""
    folder, state = coco_data.write(tmp_path, PERFECT), tmp_path / "state"
    seen: list[tuple[int, int]] = []
    run(folder, state, on_progress=lambda done: seen.append((done, len(done_images(state)))))
    assert seen == [(done, done) for done in range(len(PERFECT) + 1)]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_agreements_are_read_back_too(tmp_path: Path) -> None:
    folder, state = coco_data.write(tmp_path, PERFECT[:2]), tmp_path / "state"
    predictors = [ByColor(), ByColor(replace(FACTS, name="second"), wrong=520)]
    expected = run(folder, state, predictors).agreements
    assert (
        run(folder, state, predictors).agreements
        == expected
        == {("direct toy", "second"): (2 * 519 * 520, 2 * 520 * 520)}
    )


def test_classes_that_no_model_has_end_the_run_with_the_files_name(tmp_path: Path) -> None:
    folder = coco_data.write(tmp_path, PERFECT[:1])
    dataset = coco_with_voc_labels(folder.annotations, folder.images)
    with pytest.raises(EvaluationError, match=r"instances\.json has the class ids 15, but the models have 15 classes"):
        measure(
            dataset,
            [ByColor()],
            dataset.ids,
            RecordFile(tmp_path / "state", {}),
            classes=15,
            concurrency=1,
            on_progress=lambda _: None,
            on_stopping=lambda _: None,
        )


def test_the_report_holds_every_figure_and_the_picture_is_drawn(tmp_path: Path) -> None:
    folder = coco_data.write(tmp_path, HALF)
    predictors = [ByColor(), ByColor(replace(FACTS, name="second", weights="none"))]
    tally = run(folder, tmp_path / "state", predictors)
    dataset = coco_with_voc_labels(folder.annotations, folder.images)
    content: dict[str, Any] = json.loads(
        json.dumps(
            report(
                dataset,
                [predictor.facts for predictor in predictors],
                tally,
                class_names=voc.CLASS_NAMES,
                server="2.51.0",
            )
        )
    )
    first, second = content["predictors"]
    assert first["mean_iou"] == pytest.approx(coco_data.HALF_MEAN_IOU)
    assert first["confusion"] == tally.matrices["direct toy"].tolist()
    assert {each["name"]: each["iou"] for each in first["classes"] if each["iou"] is not None} == pytest.approx(
        coco_data.HALF_IOU
    )
    assert (first["untrained"], second["untrained"]) == (False, True)
    assert first["published"] is first["difference"] is None
    assert content["agreement"][0]["share"] == 1.0
    assert (content["images"], content["versions"]["tritonserver"]) == (2, "2.51.0")
    assert table(content).row_count == 21 + 3 + 4
    for count in (1, 3):
        shown = content | {"predictors": [*content["predictors"], second][:count]}
        (tmp_path / "figures.png").write_bytes(draw(shown))
        with pictures.opened(tmp_path / "figures.png") as picture:
            assert picture.format == "PNG"
            assert picture.width == 1800


def of_classes(*names: str, count: int | None = None) -> ByColor:
    return ByColor(classes=Classes(count or len(names), names or None))


def test_other_classes_than_those_of_the_annotations_are_refused() -> None:
    vocs, farm = voc.CLASS_NAMES, ("ground", "chicken", "fence")
    assert agreed_class_names(vocs, [of_classes(*vocs), of_classes(count=21)]) == vocs
    assert agreed_class_names(farm, [of_classes(count=3)]) == farm
    # Without names of the annotations: the first model that knows them, those of VOC for 21 classes, or numbers.
    assert agreed_class_names(None, [of_classes(count=3), of_classes(*farm)]) == farm
    assert agreed_class_names(None, [of_classes(count=21)]) == vocs
    assert agreed_class_names(None, [of_classes(count=3)]) == ("__background__", "class_1", "class_2")
    for named, predictors, message in (
        (
            vocs,
            [of_classes(*vocs[:3], "zebra", *vocs[4:])],
            r"toy: its classes are not the 21 of Pascal VOC \(.*3 is 'zebra' instead of 'bird'\); measure a model",
        ),
        (vocs, [of_classes(count=3)], r"the 21 of Pascal VOC \(it has 3 classes instead of 21\)"),
        (vocs, [of_classes(*vocs[:3])], "it has 3 classes instead of 21"),
        (farm, [of_classes(count=5)], r"not the 3 of --classes \(it has 5 classes instead of 3\)"),
        (farm, [of_classes("ground", "hen", "fence")], r"not the 3 of --classes \(1 is 'hen' instead of 'chicken'\)"),
        (None, [of_classes(count=257)], "direct toy: the model has 257 classes, .* at most 256"),
        (
            None,
            [of_classes(*farm), of_classes(count=21)],
            r"the 3 of direct toy \(it has 21 classes instead of 3\)",
        ),
    ):
        with pytest.raises(EvaluationError, match=message):
            agreed_class_names(named, predictors)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("grpc://seg:9001", "grpc://seg:9001"),
        ("seg", "grpc://seg:8001"),
        ("http://seg", "http://seg:8000"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_urls_are_those_of_the_client(url: str, expected: str) -> None:
    assert str(Server.of(url)) == expected


@pytest.mark.parametrize("url", ["ftp://seg:1", "grpc://seg:port", "grpc://"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(EvaluationError, match="--url must be grpc://host:port or http://host:port"):
        Server.of(url)


def at_once(_policy: RetryPolicy, _attempt: int) -> float:
    """Leave out the pause before a retry."""
    return 0.0


def test_a_reply_to_another_request_is_never_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client tries again, as it does for everybody; where that does not help, the image has failed."""
    folder = coco_data.write(tmp_path, HALF)
    dataset = coco_with_voc_labels(folder.annotations, folder.images)
    sample = dataset.read(dataset.ids[0])
    probe, mask = np.zeros((8, 8), np.uint8), np.full(sample.target.shape, 3, np.uint8)
    swapped = MismatchedReplyError("the reply to another request")
    fake = FakeTransport(mask, answers=[probe, swapped, swapped, mask, *[swapped] * 3])
    monkeypatch.setattr(served, "SegmentationClient", functools.partial(SegmentationClient, transport=fake))
    monkeypatch.setattr(Server, "model", functools.partial(ServedModel, parameters={}, outputs={}))
    monkeypatch.setattr(RetryPolicy, "delay", at_once)
    predictor = EnsemblePredictor(Server.of("grpc://fake:1"), "segment_resnet50", timeout=60)
    assert (predictor.predict(sample).mask == mask).all()
    with pytest.raises(EvaluationError, match="the reply to another request"):
        predictor.predict(sample)
    assert len(fake.requests) == 7
