"""Errors a user can mend. The command line prints them as one message, without a traceback."""


class LFViTError(Exception):
    """Base of every error that names what is wrong and what would be right."""


class ConfigError(LFViTError, ValueError):
    """A setting has a value that cannot work."""


class UnknownSettingError(ConfigError):
    """A name that is no setting."""


class DataError(LFViTError):
    """A folder or an image is not what was expected."""


class CheckpointError(LFViTError):
    """A weights file cannot be read, or does not fit the model."""


class StorageError(LFViTError):
    """A file cannot be written: the disk is full, or a right is missing."""


class TrainingError(LFViTError):
    """Training cannot go on, for example because the loss is not finite."""


class ExportError(LFViTError):
    """A model cannot be written for other runtimes, or answers differently there."""
