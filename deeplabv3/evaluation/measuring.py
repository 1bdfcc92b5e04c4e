"""The loop over the images: several at a time, interruptible, resumable."""

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
    """Ask every predictor about every image that has no record yet; return the sums.

    At most `concurrency` images are in memory at a time. Must run in the main thread, which hears the signals: the
    first SIGINT or SIGTERM lets the images that are in flight finish, the second one does not wait for them.

    Args:
        dataset: the images.
        predictors: what is measured.
        ids: of the images.
        records: what an earlier run has left; gets one for each image that is done.
        classes: how many the predictors have.
        concurrency: images in flight.
        on_progress: told how many images are done, whenever that changes.
        on_stopping: told at the first signal how many images are in flight.

    Raises:
        EvaluationError: of the first image that failed; all others that were done by then have a record.
        Interrupted: by a signal; all images that were done by then have a record.
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
        """Take what was counted before, unless the image or its annotation has changed since."""
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
        in_flight: the images that are being counted, by the future that will know.
    """

    def __init__(self, count_one: Callable[[str], Counts], ids: Sequence[str], size: int) -> None:
        self._count_one, self._waiting, self._size = count_one, iter(ids), size
        self._pool = ThreadPoolExecutor(size)
        # A signal's handler may run between any two instructions: SimpleQueue is made to be filled from there.
        self._queue: queue.SimpleQueue[Future[Counts] | signal.Signals] = queue.SimpleQueue()
        self.in_flight: dict[Future[Counts], str] = {}

    def events(self) -> Generator[tuple[str, Counts] | signal.Signals]:
        """Yield each image's id and counts as it is done, and the first signal.

        Raises:
            EvaluationError: of the first image that failed, after those that were in flight with it.
            Interrupted: after those that were in flight, or at the second signal.
        """
        end: BaseException | None = None
        with _heard(self._queue):
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
def _heard(events: queue.SimpleQueue[Future[Counts] | signal.Signals]) -> Generator[None]:
    """Turn signals into events."""
    previous = {
        number: signal.signal(number, lambda number, _: events.put(signal.Signals(number)))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
