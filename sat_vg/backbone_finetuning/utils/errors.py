"""Errors for the user: what was wrong, where, and what to do about it.

The commands print them as one message without a traceback; a library caller can catch them as
``ValueError``. Any other exception is a bug and keeps its traceback.
"""

import signal


class UserError(ValueError):
    """An error that the user can fix; the message names the value, the place and the remedy."""


class ConfigError(UserError):
    """A configuration that cannot be run."""


class DataError(UserError):
    """Images or folders that cannot be trained on."""


class WeightsError(UserError):
    """Weights that cannot be fetched or do not fit the backbone."""


class CheckpointError(UserError):
    """A checkpoint or artifact that cannot be read or does not fit the run."""


class StoppedError(UserError):
    """A run that had begun cannot go on; its checkpoints from before are untouched."""


class WriteError(StoppedError):
    """A file of the run cannot be written; what was there before is untouched."""


class NonFiniteLossError(StoppedError):
    """The loss, its gradient or the weights became NaN or infinite."""


class LostImageError(StoppedError):
    """An image that could be read before the training cannot be read any more."""


class LoadingError(StoppedError):
    """The processes that load images died or came to a halt."""


class DeviceMemoryError(StoppedError):
    """The device has too little memory for a step."""


class LostRankError(StoppedError):
    """Another process of the training is gone."""


class OtherRankError(StoppedError):
    """Another process of the training has ended with an error, which it tells itself."""


class InterruptedRun(Exception):
    """The run was asked to stop, by Ctrl-C or a scheduler, and has saved its state; the message says where.

    Attributes:
        number: of the signal.
    """

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.number = number
