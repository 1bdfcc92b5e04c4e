"""Why the embedded server does not start."""


class StartError(Exception):
    """The server cannot start; the message names the thing, the value and the remedy."""
