"""Monocular visual odometry: two images initialise a map, each further one is localised in it.

Source: Hartley and Zisserman, "Multiple View Geometry".
"""

from dataclasses import replace

import cv2
import numpy as np

from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.features import Features
from edgepoint2_ros.matching import check_comparable, check_usable, match, match_guided
from edgepoint2_ros.odometry.bundle import make_pose, transform
from edgepoint2_ros.odometry.camera import Camera
from edgepoint2_ros.odometry.map import ERROR, Frame, LocalMap, fits, triangulate

MIN_COSINE = 0.7  # of matches between descriptors
MIN_TRACKED = 20  # points that localise an image
MIN_START = 80  # points that initialise a map
START_PARALLAX = np.radians(1.5)  # median of the first points
KEYFRAME_SHARE = 0.7  # a keyframe is due when fewer points are tracked than this share of the last keyframe's
KEYFRAME_EVERY = 15  # images after which one is due anyway
SEARCH_RADIUS = 15.0  # pixels around the predicted position of a point
MAX_LOST = 15  # consecutive lost images after which the map is initialised again


class VisualOdometry:
    """Follows one camera.

    Attributes:
        state: ``starting``, ``tracking`` or ``lost``.
        starts: how often a map was initialised; more than 1 after being lost.
        tracked: inliers of the last image's pose.
    """

    def __init__(self, camera: Camera, start_depth: float = 1.0, min_cosine: float = MIN_COSINE, ratio: float = 1.0):
        """Prepare to track.

        Args:
            camera: the camera.
            start_depth: median distance of the scene from the camera at the start; gives the trajectory its unit. After
                being lost, that of the points that were seen last is taken instead, so that the unit remains.
            min_cosine, ratio: of matches, as for matching.match.

        Raises:
            EdgePoint2Error: start_depth is not positive.
        """
        if not start_depth > 0:
            raise EdgePoint2Error(f'start_depth: expected a positive distance, got {start_depth}')
        self.camera = camera
        self.state = 'starting'
        self.starts = 0
        self.tracked = 0
        self._start_depth = start_depth
        self._min_cosine, self._ratio = min_cosine, ratio
        self._origin = np.eye(4)  # world-to-camera pose of the image that the map starts from
        self._reference: Features | None = None
        self._map = LocalMap(camera, min_cosine, ratio)
        self._since_keyframe = 0
        self._lost = 0
        self._last = np.eye(4)
        self._motion = np.eye(4)  # between the last two images; the prediction for the next (constant velocity)

    @property
    def points(self) -> np.ndarray:
        """The local map: (M, 3) points in the frame of the first image."""
        return self._map.points

    def track(self, features: Features) -> np.ndarray | None:
        """Return the camera pose of one image: (4, 4), maps points from its optical frame to the first one's.

        None while the map is being initialised (the camera has to move sideways first), and while tracking is lost.

        Raises:
            EdgePoint2Error: keypoints or descriptors are not finite, or the descriptors cannot be compared with the
                previous ones: other weights, or another size. The map stays as it was.
        """
        check_usable(features)
        known = self._map.keyframes[-1].features if self._map.keyframes else self._reference
        if known is not None:
            check_comparable(known, features)
        features = _flatten(features, self.camera)
        pose = self._start(features) if self.state == 'starting' else self._place(features)
        return None if pose is None else np.linalg.inv(pose)

    def _start(self, features: Features) -> np.ndarray | None:
        if self._reference is None or len(self._reference) < MIN_START:
            self._reference = features
            return None
        pairs = match(self._reference, features, self._min_cosine, self._ratio)
        if len(pairs) < MIN_START:
            self._reference = features
            return None
        first, second = self._reference.xy[pairs[:, 0]], features.xy[pairs[:, 1]]
        try:
            method = cv2.USAC_MAGSAC
            essential, agree = cv2.findEssentialMat(first, second, self.camera.matrix, method, 0.999, ERROR / 2)
        except cv2.error:  # OpenCV's USAC fails on some matches of a camera that hardly moves
            return None
        if essential is None or essential.shape != (3, 3):
            return None
        _, rotation, translation, agree = cv2.recoverPose(
            essential, first, second, self.camera.matrix, mask=agree.copy()
        )
        relative = make_pose(rotation, translation)
        agree = agree.ravel().astype(bool)
        points, good, parallax = triangulate(self.camera, np.eye(4), relative, first, second)
        good &= agree
        if np.count_nonzero(good) < MIN_START or np.median(parallax[agree]) < START_PARALLAX:
            return None
        scale = self._start_depth / np.median(points[good, 2])
        relative[:3, 3] *= scale
        in_world = transform(np.linalg.inv(self._origin), points[good] * scale)
        self._map.start(
            Frame.at(self._origin, self._reference), Frame.at(relative @ self._origin, features), in_world, pairs[good]
        )
        self._reference = None
        self.state, self.tracked = 'tracking', len(in_world)
        self.starts += 1
        self._since_keyframe = self._lost = 0
        self._last, self._motion = self._map.keyframes[-1].pose, np.eye(4)
        return self._last

    def _place(self, features: Features) -> np.ndarray | None:
        """Localise an image by the points of the latest keyframes."""
        local = np.unique(np.concatenate([frame.points for frame in self._map.keyframes]))
        local = local[local >= 0]
        known = replace(
            features,
            xy=self._map.points[local],
            scores=np.zeros(len(local)),
            descriptors=self._map.descriptors[local],
        )
        pose, pairs = None, np.zeros((0, 2), int)
        if self.state == 'tracking':
            expected = self._motion @ self._last
            pairs = self._match_near(expected, known, features, 4 * SEARCH_RADIUS)
            pose, pairs = self._solve(known.xy, features.xy, pairs)
        if pose is None:  # unexpected motion, or lost: match with the whole image
            pairs = match(known, features, self._min_cosine, self._ratio)
            pose, pairs = self._solve(known.xy, features.xy, pairs)
        if pose is not None:
            pairs = self._match_near(pose, known, features, SEARCH_RADIUS)
            pose, pairs = self._solve(known.xy, features.xy, pairs)
        if pose is None:
            self._give_up(features)
            return None
        self._motion = pose @ np.linalg.inv(self._last) if self.state == 'tracking' else np.eye(4)
        self.state, self._lost, self._last, self.tracked = 'tracking', 0, pose, len(pairs)
        self._since_keyframe += 1
        frame = Frame.at(pose, features)
        frame.points[pairs[:, 1]] = local[pairs[:, 0]]
        last = np.count_nonzero(self._map.keyframes[-1].points >= 0)
        if self._since_keyframe >= KEYFRAME_EVERY or len(pairs) < KEYFRAME_SHARE * last:
            self._map.add_keyframe(frame)
            self._last, self._since_keyframe = frame.pose, 0
        return self._last

    def _give_up(self, features: Features) -> None:
        self.state, self.tracked = 'lost', 0
        self._lost += 1
        if self._lost >= MAX_LOST:  # a new map starts at the last known pose
            self.state = 'starting'
            seen = self._map.keyframes[-1]
            depths = transform(seen.pose, self._map.points[seen.points[seen.points >= 0]])[:, 2]
            if len(depths):  # the trajectory keeps its unit
                self._start_depth = float(np.median(depths))
            self._origin, self._reference, self._lost = self._last, features, 0

    def _match_near(self, pose: np.ndarray, known: Features, features: Features, radius: float) -> np.ndarray:
        """Match known points with keypoints within ``radius`` pixels of their projections: (P, 2)."""
        seen = transform(pose, known.xy)
        predicted = np.where(seen[:, 2:] > 1e-6, self.camera.project(seen), np.nan)
        return match_guided(known, features, predicted, radius, min_cosine=self._min_cosine)

    def _solve(self, points: np.ndarray, xy: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
        """Return the pose by PnP from points and their keypoints, and the inlier pairs; None if there are too few."""
        if len(pairs) < MIN_TRACKED:
            return None, pairs[:0]
        points, xy = points[pairs[:, 0]], xy[pairs[:, 1]]
        cv2.setRNGSeed(0)  # the same images give the same trajectory
        found, rotation, translation, agree = cv2.solvePnPRansac(
            points, xy, self.camera.matrix, None, iterationsCount=200, reprojectionError=ERROR, confidence=0.999,
            flags=cv2.SOLVEPNP_AP3P,
        )  # fmt: skip
        if not found or agree is None or len(agree) < MIN_TRACKED:
            return None, pairs[:0]
        agree = agree.ravel()
        rotation, translation = cv2.solvePnPRefineLM(
            points[agree], xy[agree], self.camera.matrix, None, rotation, translation
        )
        pose = make_pose(cv2.Rodrigues(rotation)[0], translation)
        agree = fits(self.camera, pose, points, xy)
        return (pose, pairs[agree]) if np.count_nonzero(agree) >= MIN_TRACKED else (None, pairs[:0])


def _flatten(features: Features, camera: Camera) -> Features:
    """Return features at their undistorted positions, without those that have none."""
    flat = camera.undistort(features.xy)
    seen = np.isfinite(flat).all(axis=1)
    return replace(features, xy=flat[seen], scores=features.scores[seen], descriptors=features.descriptors[seen])
