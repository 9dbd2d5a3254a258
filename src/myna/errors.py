"""The few kinds of error a user can cause.

Each message is one sentence or two: what was found, what was wanted, what to do. The command line prints it
without a traceback and exits with 1; anything that is not a `MynaError` is a bug of ours.
"""


class MynaError(Exception):
    """A mistake that the user can mend."""


class AudioError(MynaError):
    """A file that cannot be used as music: not audio, empty, unreadable, too short, too damaged."""


class StoreError(MynaError):
    """A mel store that is missing, unfinished, empty, or made with other settings."""


class ConfigError(MynaError):
    """A setting that does not exist, has an impossible value, or contradicts another."""


class CheckpointError(MynaError):
    """A model or run folder that is missing, incomplete, or does not fit."""


class RunError(MynaError):
    """A training run that cannot start, or cannot go on."""


class TaskError(MynaError):
    """A benchmark whose files are missing, damaged, or not those of the benchmark."""


class ProbeError(MynaError):
    """Embeddings, labels or settings that a probe cannot be trained on or scored with."""


def first_line(error: Exception) -> str:
    """Return what an error of others says, or else its name, to stand inside a sentence of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
