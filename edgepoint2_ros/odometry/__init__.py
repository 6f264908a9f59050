"""Visual odometry: the pose of one camera, from the features of its images alone. Plain numpy and OpenCV, no ROS.

An example of a keypoint consumer rather than a SLAM: two images initialise a map of 3D points, each further image is
localised by PnP on the points it sees, and keyframes add points and run local bundle adjustment. There is no loop
closure. A single camera cannot observe the scale: the caller gives the distance of the scene at the start.
"""

from edgepoint2_ros.odometry.camera import Camera
from edgepoint2_ros.odometry.monocular import MIN_COSINE, VisualOdometry

__all__ = ['MIN_COSINE', 'Camera', 'VisualOdometry']
