"""The overlay: an image with its keypoints, drawn fast enough to look at while the robot works."""

import cv2
import numpy as np

from edgepoint2_ros.features import Features

# The pixels of a circle of radius 3: drawing all keypoints at once is ten times as fast as circle by circle.
_DX, _DY = np.array([(x, y) for x in range(-3, 4) for y in range(-3, 4) if 7 <= x * x + y * y <= 11]).T


def draw_overlay(image: np.ndarray, features: Features, text: str) -> np.ndarray:
    """Return a BGR copy of ``image`` (H, W) or (H, W, 3) with its keypoints and a line of text.

    Keypoints are coloured by their rank, the best red, the last blue.
    """
    canvas = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else image.copy()
    height, width = canvas.shape[:2]
    x, y = np.rint(features.xy[::-1]).astype(int).T  # the best last, so that they lie on top
    ranks = np.linspace(0, 255, len(features)).astype(np.uint8)
    if len(features):
        colours = cv2.applyColorMap(ranks[:, None], cv2.COLORMAP_TURBO).reshape(-1, 3)
        rows = np.clip(y[:, None] + _DY, 0, height - 1)
        columns = np.clip(x[:, None] + _DX, 0, width - 1)
        canvas[rows, columns] = colours[:, None]
    scale = max(0.4, width / 1400)
    for colour, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        place = (int(12 * scale), int(30 * scale))
        cv2.putText(canvas, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, thickness, cv2.LINE_AA)
    return canvas
