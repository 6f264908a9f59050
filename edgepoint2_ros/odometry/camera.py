"""A calibrated camera: its matrix and the distortion of its lens."""

from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from edgepoint2_ros.errors import EdgePoint2Error


@dataclass(frozen=True)
class Camera:
    """A calibrated camera, with the fields k, d and distortion_model of a CameraInfo message.

    Attributes:
        matrix: (3, 3) camera matrix, pixels.
        distortion: (n,) coefficients, n = 4, 5, 8, 12 or 14, for equidistant 4; none or zeros for rectified images.
        model: ``plumb_bob``, ``rational_polynomial``, or ``equidistant`` for fisheye lenses.
    """

    matrix: np.ndarray
    distortion: np.ndarray = field(default_factory=lambda: np.zeros(0))
    model: str = 'plumb_bob'

    def __post_init__(self) -> None:
        # OpenCV's USAC assumes a contiguous matrix, which a slice of P is not.
        matrix = np.ascontiguousarray(self.matrix, float)
        object.__setattr__(self, 'matrix', matrix)
        if (
            matrix.shape != (3, 3)
            or not np.isfinite(matrix).all()
            or not (matrix.diagonal() > 0).all()
            or np.tril(matrix, -1).any()
            or matrix[2, 2] != 1
        ):
            raise EdgePoint2Error(
                'camera matrix: expected (3, 3) with positive focal lengths and finite numbers, as '
                f'[fx, 0, cx], [0, fy, cy], [0, 0, 1], got {matrix.tolist()}'
            )
        if self.model not in ('', 'plumb_bob', 'rational_polynomial', 'equidistant'):
            raise EdgePoint2Error(
                f'distortion model {self.model!r} is unknown: expected plumb_bob, rational_polynomial or equidistant'
            )
        count = len(self.distortion)
        if self.model == 'equidistant':  # RealSense cameras send a fifth coefficient, which is 0
            expected = '4 (equidistant; a fifth may be 0)'
            fits = count in (0, 4) or (count == 5 and self.distortion[4] == 0)
        else:
            expected = '0, 4, 5, 8, 12 or 14'
            fits = count in (0, 4, 5, 8, 12, 14)
        if not fits:
            raise EdgePoint2Error(f'distortion: expected {expected} coefficients, got {count}')
        if not np.isfinite(self.distortion).all():
            raise EdgePoint2Error(f'distortion: expected finite coefficients, got {list(self.distortion)}')

    def undistort(self, xy: np.ndarray) -> np.ndarray:
        """Return the undistorted positions of pixels (N, 2): (N, 2) float64.

        A fisheye lens also sees what lies 90 degrees off its axis and beyond, where a pinhole has no pixel: NaN.
        """
        xy = np.asarray(xy, np.float64).reshape(-1, 1, 2)
        if len(xy) == 0 or not np.any(self.distortion):
            return xy[:, 0]
        distortion = np.asarray(self.distortion, np.float64)
        if self.model == 'equidistant':
            flat = cv2.fisheye.undistortPoints(xy, self.matrix, distortion[:4], P=self.matrix)[:, 0]
            # OpenCV finds some finite position for those, too; -1e6 where it finds none.
            radius = np.hypot(*((xy[:, 0] - self.matrix[:2, 2]) / self.matrix.diagonal()[:2]).T)
            flat[(radius >= _fisheye_limit(distortion)) | (flat == -1e6).all(axis=1)] = np.nan
            return flat
        return cv2.undistortPoints(xy, self.matrix, distortion, P=self.matrix)[:, 0]

    def project(self, points: np.ndarray) -> np.ndarray:
        """Return the undistorted pixels (N, 2) of points (N, 3) in the camera's frame."""
        homogeneous = points @ self.matrix.T
        with np.errstate(divide='ignore', invalid='ignore'):
            return homogeneous[:, :2] / homogeneous[:, 2:]


def _fisheye_limit(distortion: np.ndarray) -> float:
    """Return the radius in the image, in focal lengths, at 90 degrees off the axis, or where the radius stops to grow.

    Source: Kannala and Brandt, "A generic camera model and calibration method", 2006.
    """
    angle = np.linspace(0, np.pi / 2, 1001)
    radius = angle * (1 + np.polynomial.polynomial.polyval(angle**2, [0.0, *distortion[:4]]))
    falls = np.flatnonzero(np.diff(radius) <= 0)
    return float(radius[falls[0] if len(falls) else -1])


def image_window(info: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return which part of the sensor the images of a CameraInfo message show: offset, size and binning.

    CameraInfo.msg: the ROI, all zeros for the whole sensor, is a window of it, and binning is applied after it.

    Args:
        info: of ROS 1 or 2.

    Returns:
        Three (2,) arrays of ints, x or width first; the images have size // binning pixels.

    Raises:
        EdgePoint2Error: the ROI is not within the sensor, or smaller than a pixel of the image.
    """
    roi, whole = info.roi, np.array([info.width, info.height])
    offset, size = np.array([roi.x_offset, roi.y_offset]), np.array([roi.width, roi.height])
    binning = np.maximum((info.binning_x, info.binning_y), 1)
    if not offset.any() and not size.any():
        size = whole
    if (offset + size > whole).any() or (size < binning).any():
        raise EdgePoint2Error(
            f'ROI and binning: expected a part of {info.width}x{info.height} pixels, got {roi.width}x{roi.height} at '
            f'({roi.x_offset}, {roi.y_offset}) with binning {info.binning_x}x{info.binning_y}'
        )
    return offset, size, binning
