"""The errors that this package raises for bad input; each message says what was expected and what was given."""


class EdgePoint2Error(Exception):
    """Base class: catch this to catch every error that the package raises on purpose."""


class ImageError(EdgePoint2Error):
    """An image that cannot be read or used."""


class ModelError(EdgePoint2Error):
    """An unknown variant, or weights or a model file that are missing, corrupt or of another kind."""


class EngineError(EdgePoint2Error):
    """A runtime that is missing, or that cannot do what was asked."""


class MessageError(EdgePoint2Error):
    """A KeypointArray message whose fields contradict each other."""


class BagError(EdgePoint2Error):
    """A recording that cannot be read or written."""


def in_words(error: BaseException) -> str:
    """Return an error of this package as it is, any other one with its type."""
    return str(error) if isinstance(error, EdgePoint2Error) else f'{type(error).__name__}: {error}'
