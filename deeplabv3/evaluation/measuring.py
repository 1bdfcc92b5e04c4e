"""The loop over the images: concurrent, interruptible and resumable."""

from __future__ import annotations

import queue
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from deeplabv3.evaluation import EvaluationError, Interrupted
from deeplabv3.evaluation.counting import Counts, Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from deeplabv3.evaluation.datasets import Dataset
    from deeplabv3.evaluation.predictors import Predictor
    from deeplabv3.evaluation.records import RecordFile


def measure(
    dataset: Dataset,
    predictors: Sequence[Predictor],
    ids: Sequence[str],
    records: RecordFile,
    *,
    classes: int,
    concurrency: int,
    on_progress: Callable[[int], None],
    on_stopping: Callable[[int], None],
) -> Tally:
    """Run every predictor on every image that has no record yet; return the sums.

    At most `concurrency` images are in memory at a time. This must run in the main thread, which receives signals:
    after the first SIGINT or SIGTERM the images in flight finish; the second one does not wait for them.

    Args:
        dataset: the images.
        predictors: the predictors to measure.
        ids: the ids of the images.
        records: the records of an earlier run; gets one for each finished image.
        classes: the number of classes of the predictors.
        concurrency: the number of images in flight.
        on_progress: called with the number of finished images whenever it changes.
        on_stopping: called at the first signal with the number of images in flight.

    Raises:
        EvaluationError: of the first image that failed; the images that were finished by then have records.
        Interrupted: a signal came; the images that were finished by then have records.
    """
    tally = Tally([predictor.facts for predictor in predictors], classes=classes, ignore=dataset.ignore)

    stamps: dict[str, list[list[int]]] = {}

    def count_one(image_id: str) -> Counts:
        stamps[image_id] = dataset.stamp(image_id)
        sample = dataset.read(image_id)
        sample.check_class_ids(classes, ignore=dataset.ignore)
        try:
            return tally.count({predictor.facts.name: predictor.predict(sample) for predictor in predictors})
        except (EvaluationError, ValueError) as exc:
            raise EvaluationError(f"image {sample.name}: {exc}") from exc

    def restore(record: dict[str, Any]) -> None:
        """Restore the counts of an image, unless the image or its annotation has changed since."""
        image_id = str(record["image"])
        is_unchanged = record["files"] == dataset.stamp(image_id)
        if is_unchanged and image_id not in tally.done:
            tally.restore(record)

    with records.open(restore):
        on_progress(len(tally.done))
        window = _Window(count_one, [image_id for image_id in ids if image_id not in tally.done], concurrency)
        before, started = tally.seconds, time.monotonic()
        with closing(window.events()) as events:
            for event in events:
                if isinstance(event, signal.Signals):
                    on_stopping(len(window.in_flight))
                else:
                    record = tally.add(*event, before + time.monotonic() - started)
                    records.append(record | {"files": stamps.pop(event[0])})
                    on_progress(len(tally.done))
    return tally


class _Window:
    """A bounded number of images in flight, and the signals that end it.

    Attributes:
        in_flight: the ids of the images that are being counted, by their future.
    """

    def __init__(self, count_one: Callable[[str], Counts], ids: Sequence[str], size: int) -> None:
        self._count_one, self._waiting, self._size = count_one, iter(ids), size
        self._pool = ThreadPoolExecutor(size)
        # SimpleQueue, because a signal handler, which may run between any two instructions, can put into it.
        self._queue: queue.SimpleQueue[Future[Counts] | signal.Signals] = queue.SimpleQueue()
        self.in_flight: dict[Future[Counts], str] = {}

    def events(self) -> Generator[tuple[str, Counts] | signal.Signals]:
        """Yield each finished image's id and counts, and the first signal.

        Raises:
            EvaluationError: of the first image that failed, after the images in flight are finished.
            Interrupted: after the images in flight are finished, or at the second signal.
        """
        end: BaseException | None = None
        with _signals_as_events(self._queue):
            try:
                for _ in range(self._size):
                    self._submit()
                while self.in_flight:
                    event = self._queue.get()
                    if isinstance(event, signal.Signals):
                        if isinstance(end, Interrupted):
                            raise Interrupted(event, len(self.in_flight))
                        end = end or Interrupted(event, 0)
                        yield event
                        continue
                    image_id = self.in_flight.pop(event)
                    error = event.exception()
                    if error is None:
                        yield image_id, event.result()
                    end = end or error
                    if end is None:
                        self._submit()
            finally:
                self._pool.shutdown(wait=False)
        if end is not None:
            raise end

    def _submit(self) -> None:
        image_id = next(self._waiting, None)
        if image_id is not None:
            future = self._pool.submit(self._count_one, image_id)
            self.in_flight[future] = image_id
            future.add_done_callback(self._queue.put)


@contextmanager
def _signals_as_events(events: queue.SimpleQueue[Future[Counts] | signal.Signals]) -> Generator[None]:
    """Put SIGINT and SIGTERM into a queue instead of raising."""
    previous = {
        number: signal.signal(number, lambda number, _: events.put(signal.Signals(number)))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
