"""The error of a start of the embedded server."""


class StartError(Exception):
    """The server cannot start; the message says what is wrong and what to do."""
