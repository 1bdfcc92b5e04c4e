"""The loop over the images: several at a time, interruptible, resumable."""

from __future__ import annotations

import queue
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from deeplabv3.evaluation.errors import EvaluationError
from deeplabv3.evaluation.tally import ImageTally, Tally, comparable, count

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from deeplabv3.evaluation.predictors import Predictor
    from deeplabv3.evaluation.samples import Dataset
    from deeplabv3.evaluation.state import StateFile


class Interrupted(Exception):  # noqa: N818  no error: somebody asked for it
    """A signal ended the run; its state is on disk.

    Attributes:
        number: of the signal.
        abandoned: how many threads still wait for an image or a model; a second signal came before they were done.
    """

    def __init__(self, number: int, abandoned: int) -> None:
        super().__init__(number, abandoned)
        self.number, self.abandoned = number, abandoned


def measure(
    dataset: Dataset,
    predictors: Sequence[Predictor],
    ids: Sequence[str],
    state: StateFile,
    *,
    concurrency: int,
    on_progress: Callable[[int], None],
    on_stopping: Callable[[int], None],
) -> Tally:
    """Ask every predictor about every image that the state does not count yet; return the sums.

    At most `concurrency` images are in memory at a time. Must run in the main thread, which hears the signals: the
    first SIGINT or SIGTERM lets the images that are in flight finish, the second one does not wait for them.

    Args:
        dataset: the images.
        predictors: what is measured.
        ids: of the images.
        state: what an earlier run has left; is kept up to date.
        concurrency: images in flight.
        on_progress: told how many images are done, whenever that changes.
        on_stopping: told at the first signal how many images are in flight.

    Raises:
        EvaluationError: of the first image that failed; the state holds all others that were done by then.
        Interrupted: by a signal; the state holds all that were done by then.
    """
    facts = [predictor.facts for predictor in predictors]
    pairs = comparable(facts)
    tally = Tally(facts)
    state.load(tally)
    on_progress(len(tally.done))

    def count_one(image_id: str) -> ImageTally:
        sample = dataset.read(image_id)
        try:
            return count({predictor.facts.name: predictor.predict(sample) for predictor in predictors}, pairs)
        except EvaluationError as exc:
            raise EvaluationError(f"image {sample.name}: {exc}") from exc

    window = _Window(count_one, [image_id for image_id in ids if image_id not in tally.done], concurrency)
    before, started = tally.seconds, time.monotonic()
    try:
        with closing(window.events()) as events:
            for event in events:
                tally.seconds = before + time.monotonic() - started
                if isinstance(event, signal.Signals):
                    state.save(tally)
                    on_stopping(len(window.in_flight))
                else:
                    tally.add(*event)
                    on_progress(len(tally.done))
                    state.save_if_due(tally)
    finally:
        state.save(tally)
    return tally


class _Window:
    """A bounded number of images in flight, and the signals that end it.

    Attributes:
        in_flight: the images that are being counted, by the future that will know.
    """

    def __init__(self, count_one: Callable[[str], ImageTally], ids: Sequence[str], size: int) -> None:
        self._count_one, self._waiting, self._size = count_one, iter(ids), size
        self._pool = ThreadPoolExecutor(size)
        # A signal's handler may run between any two instructions: SimpleQueue is made to be filled from there.
        self._queue: queue.SimpleQueue[Future[ImageTally] | signal.Signals] = queue.SimpleQueue()
        self.in_flight: dict[Future[ImageTally], str] = {}

    def events(self) -> Generator[tuple[str, ImageTally] | signal.Signals]:
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
def _heard(events: queue.SimpleQueue[Future[ImageTally] | signal.Signals]) -> Generator[None]:
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
