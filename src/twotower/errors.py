"""Every exception that twotower raises on purpose.

Each is a fault that the user can mend: its message is one line that says where, what was found and what to do. The
command line prints that line and exits with code 2; anything else is a bug and keeps its traceback.
"""


class TwotowerError(Exception):
    """A fault in what we were given, told in one line."""


class RecipeError(TwotowerError):
    """The recipe asks for something that does not exist or cannot be."""


class DataError(TwotowerError):
    """The tables do not hold what the recipe says they hold."""


class ArtifactError(TwotowerError):
    """A directory that an earlier step wrote is missing, damaged or of another format version."""


class TrainingError(TwotowerError):
    """Training cannot go on: a loss that is no number, or a checkpoint of another run."""


class RequestError(TwotowerError):
    """A request for recommendations names something that the bundle does not know, or asks for too much."""


class BusyError(TwotowerError):
    """So much waits already that no more is taken; the same may be asked again in a moment."""


class MissingExtraError(TwotowerError):
    """An optional dependency is not installed; the message names the command that installs it."""


class StorageError(TwotowerError):
    """An address cannot be read or written: nothing there, no right to it, or no such kind of address."""


class PipelineError(TwotowerError):
    """A pipeline cannot be compiled, sent, followed, or has failed."""


class ClusterError(TwotowerError):
    """A cluster, or a tool that talks to one, is not as it has to be."""
