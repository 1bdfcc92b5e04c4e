"""What can go wrong between an argument and a model. Each error is also the builtin that fits."""

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
"""Of storage, which may be on the other side of a network: what goes away by itself, or when somebody makes room."""


class DeepLabV3Error(Exception):
    """Root of the errors of this package; the message says what to do."""


class InvalidOptionError(DeepLabV3Error, ValueError):
    """An argument has a value that no model can have, or that contradicts another."""


class UnknownOptionError(DeepLabV3Error, TypeError):
    """An argument that neither the function nor its ResNet knows."""


class CheckpointError(DeepLabV3Error, ValueError):
    """A file is no checkpoint, or its weights do not fit the model."""


class WeightsUnavailableError(DeepLabV3Error, OSError):
    """Published weights could not be downloaded, or their file in the cache is damaged."""


class RepositoryError(DeepLabV3Error, ValueError):
    """A file of a model repository is missing, damaged, or not what its name says."""


class BuildError(DeepLabV3Error, RuntimeError):
    """A model cannot be built into a repository, or not as asked."""


class RetryableBuildError(BuildError):
    """The same build may succeed later: another one is running, or the storage is full."""
