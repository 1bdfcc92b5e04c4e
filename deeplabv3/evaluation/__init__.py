"""Measure the accuracy of a server and of the PyTorch module side by side: `python -m deeplabv3.evaluation --help`."""


def images(count: int) -> str:
    """Return a number of images in words."""
    return "1 image" if count == 1 else f"{count} images"


class EvaluationError(Exception):
    """The evaluation cannot go on; the message names the thing, the value and the remedy."""


class StateError(EvaluationError):
    """What an interrupted run has left does not belong to this run, or is damaged."""


class Interrupted(Exception):  # noqa: N818 - no error: somebody asked for it
    """A signal ended the run; its records are on disk.

    Attributes:
        number: of the signal.
        abandoned: how many threads still wait for an image or a model; a second signal came before they were done.
    """

    def __init__(self, number: int, abandoned: int) -> None:
        super().__init__(number, abandoned)
        self.number, self.abandoned = number, abandoned
