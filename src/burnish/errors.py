"""Errors whose text is part of the interface: what is wrong, where, what was met, what to do."""


class BurnishError(Exception):
    """Base of everything burnish raises on purpose. `exit_code` is what the command line returns."""

    exit_code = 2


class CalibrationWarning(UserWarning):
    """Quantization went on, but from calibration rows that do not yet tell the ranges of all values."""


class CaptureError(BurnishError):
    """The model cannot be turned into a Graph."""


class GraphError(BurnishError):
    """A Graph or Node would be malformed: wrong arity, shapes that do not fit, an unknown attribute."""


class RecipeError(BurnishError):
    """A recipe cannot be read, or a step does not apply to this graph."""


class BuildError(BurnishError):
    """A backend cannot build this graph here."""


class ArtifactError(BurnishError):
    """An artifact is missing, incomplete, damaged, or not made for this machine."""


class InputError(BurnishError):
    """Rows given to a scorer, a calibration or a measurement do not fit the inputs."""


class JobError(BurnishError):
    """The job file, or the data it names, cannot be used."""


class MeasureError(BurnishError):
    """A measurement is invalid, or two of them cannot be put together."""


class ServeError(BurnishError):
    """The server cannot start or was asked for something it does not have."""


class Overloaded(ServeError):
    """A server refused a request because it has too many."""


class ObjectiveNotMet(BurnishError):
    """Everything ran, and nothing meets the objective; the text names the nearest that can be met."""

    exit_code = 1
