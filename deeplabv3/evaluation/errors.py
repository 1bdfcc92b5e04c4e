"""What stops an evaluation."""


class EvaluationError(Exception):
    """The evaluation cannot go on; the message names the thing, the value and the remedy."""
