"""Measure the accuracy of a server and of the PyTorch module side by side: `python -m deeplabv3.evaluation --help`."""


def images(count: int) -> str:
    """Return a number of images as text, such as "1 image"."""
    return "1 image" if count == 1 else f"{count} images"


class EvaluationError(Exception):
    """The evaluation cannot continue; the message says what is wrong and what to do."""


class StateError(EvaluationError):
    """The state of an interrupted run does not belong to this run, or is damaged."""


class Interrupted(Exception):  # noqa: N818 - it is not an error
    """A signal ended the run; its records are on disk.

    Attributes:
        number: the number of the signal.
        abandoned: how many threads still wait for an image or a model, because a second signal ended the wait for them.
    """

    def __init__(self, number: int, abandoned: int) -> None:
        super().__init__(number, abandoned)
        self.number, self.abandoned = number, abandoned
