"""Errors that a user can mend. The command line prints their message without a traceback and exits with status 2."""


def is_out_of_memory(error: BaseException) -> bool:
    """Of Python, of a CUDA device (torch.OutOfMemoryError), or of torch on a CPU, which raises a plain RuntimeError."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "DefaultCPUAllocator" in str(error)
    )


class RlsfError(Exception):
    """Base of the errors below."""


class ConfigError(RlsfError):
    """A config file, an override, or a combination of settings is wrong."""


class DataError(RlsfError):
    """A data set is missing, empty, broken, or lacks a column."""


class ModelError(RlsfError):
    """A model or adapter cannot be found, read or converted."""


class RunDirError(RlsfError):
    """A run directory cannot be written, exists already, or holds nothing to resume."""


class InterruptedRun(KeyboardInterrupt):
    """Ctrl-C in a run that stands: it can be resumed. Before that, a plain KeyboardInterrupt leaves nothing."""


class TrainingError(RlsfError):
    """Training cannot go on: a loss or gradient is not finite, or nothing is left to train on."""
