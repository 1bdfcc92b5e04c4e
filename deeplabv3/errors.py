"""The errors of this package. Each one is also a subclass of the matching builtin error."""

import errno

PASSING_ERRORS = frozenset(
    {
        errno.EAGAIN,
        errno.ECONNABORTED,
        errno.EDQUOT,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EIO,
        errno.ENETUNREACH,
        errno.ENOLCK,
        errno.ENOSPC,
        errno.ENOTCONN,
        errno.EREMOTEIO,
        errno.ESTALE,
        errno.ETIMEDOUT,
    }
)
"""Errors of local or remote storage after which a retry may succeed."""


class DeepLabV3Error(Exception):
    """Base class of the errors of this package; the message says what to do."""


class InvalidOptionError(DeepLabV3Error, ValueError):
    """An argument has an impossible value, or one that contradicts another argument."""


class UnknownOptionError(DeepLabV3Error, TypeError):
    """An argument is known neither to the function nor to its ResNet."""


class CheckpointError(DeepLabV3Error, ValueError):
    """A file is not a checkpoint, or its weights do not fit the model."""


class WeightsUnavailableError(DeepLabV3Error, OSError):
    """Published weights could not be downloaded, or their file in the cache is damaged."""


class RepositoryError(DeepLabV3Error, ValueError):
    """A file of a model repository is missing, damaged, or has unexpected content."""


class BuildError(DeepLabV3Error, RuntimeError):
    """A model cannot be built as requested."""


class RetryableBuildError(BuildError):
    """The same build may succeed later: another one is running, or the storage is full."""
