"""Models: the 14 variants, where their files are, the official weights, and what every part knows of the network."""

from edgepoint2_ros.models.store import (
    CARD_FORMAT,
    SHIPPED,
    WEIGHTS,
    Model,
    card_path,
    find_model,
    format_card,
    is_shipped,
    list_models,
    min_cosine,
    models_directory,
    open_model,
    part_path,
    read_part,
    write_entry,
    write_min_cosine,
)
from edgepoint2_ros.storage import data_directory

STRIDE = 32  # the network works on sizes that are multiples of this; other images are resampled inside the model
MIN_SIZE = 64  # smallest image side in pixels
PAD_SCORE = -65504.0  # score of rows past the last keypoint: the lowest number of float16, far below any logit
NMS_RADIUS = 2  # keypoints are maxima of a window of 2 * NMS_RADIUS + 1 pixels
BORDER = 4  # pixels along the image's edge that hold no keypoints
MIN_CURVATURE = 1e-6  # of a parabola through three scores; keeps plateaus from dividing by zero
MAX_KEYPOINTS = 2048  # of an image, unless another number is asked for

__all__ = [
    'BORDER',
    'CARD_FORMAT',
    'MAX_KEYPOINTS',
    'MIN_CURVATURE',
    'MIN_SIZE',
    'NMS_RADIUS',
    'PAD_SCORE',
    'SHIPPED',
    'STRIDE',
    'WEIGHTS',
    'Model',
    'card_path',
    'data_directory',
    'find_model',
    'format_card',
    'is_shipped',
    'list_models',
    'min_cosine',
    'models_directory',
    'open_model',
    'part_path',
    'read_part',
    'write_entry',
    'write_min_cosine',
]
