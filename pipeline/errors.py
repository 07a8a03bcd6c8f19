"""Errors: whatever a user can cause derives from `PipelineError`.

PipelineError                 exit 1: a run failed
├── UsageError                exit 2: the command or the config is wrong
│   ├── ConfigError           one or more config faults, all listed
│   └── UnknownPluginError    no file of that name
├── ArtifactError
│   ├── MissingArtifactError  an input was never made
│   ├── StaleArtifactError    an input was made from something else
│   └── IncompleteArtifactError
├── DataError                 source files cannot be used
│   ├── SplitLeakError        a group stands in two splits
│   └── SkippedTooManyError   more bad files than `max_skipped_fraction`
├── DiskError                 the disk is full, or may not be written
├── MissingWeightsError       a checkpoint is not on this machine
├── RemoteError               a server refuses, or asks to be left alone
│   └── CostLimitError        asking on could cost more than allowed
├── OutOfMemoryError          memory ran out, or a worker was killed as if it had
├── ValueRangeError           an array has the wrong dtype or range
├── SampleSizeError           too few images for a score
└── TrainingError             NaN, divergence, an unusable data set
"""

from collections.abc import Sequence


class PipelineError(Exception):
    """A failure that the user can cause and mend; printed without a traceback."""

    exit_code = 1


class UsageError(PipelineError):
    """The command line or the configuration is wrong."""

    exit_code = 2


class ConfigError(UsageError):
    """Faults of one configuration, all of them at once."""

    def __init__(self, where: str, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        count = len(self.problems)
        head = f"{count} problem{'s' if count != 1 else ''} in {where}"
        super().__init__("\n  ".join([head, *self.problems]))


class UnknownPluginError(UsageError):
    """No plug-in file of that name exists."""


class ArtifactError(PipelineError):
    """An artifact is missing, stale or unfinished."""


class MissingArtifactError(ArtifactError):
    """An input artifact was never made."""


class StaleArtifactError(ArtifactError):
    """An input artifact was made from another config, input or source."""


class IncompleteArtifactError(ArtifactError):
    """A folder has no manifest, so the run that made it did not finish."""


class DataError(PipelineError):
    """Source files cannot be used."""


class SplitLeakError(DataError):
    """A group of slices stands in more than one split."""


class SkippedTooManyError(DataError):
    """More inputs were skipped than `max_skipped_fraction` allows."""


class DiskError(PipelineError):
    """The disk is full, or a folder may not be written."""


class MissingWeightsError(PipelineError):
    """A checkpoint is not on this machine and cannot be downloaded."""


class RemoteError(PipelineError):
    """A server refuses what is asked of it, and will go on refusing."""


class CostLimitError(RemoteError):
    """One more request could cost more than the configuration allows."""


class OutOfMemoryError(PipelineError):
    """Memory ran out, or a worker process was killed, as the system does then."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out, on a GPU or on the CPU."""
    words = ("out of memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


class ValueRangeError(PipelineError):
    """An array has an unexpected dtype, shape or value range."""


class SampleSizeError(PipelineError):
    """A score needs more images than there are."""


class TrainingError(PipelineError):
    """Training cannot start or cannot go on."""
