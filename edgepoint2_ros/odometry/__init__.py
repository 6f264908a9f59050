"""Visual odometry: where one camera is, from the features of its images alone. Plain numpy and OpenCV, no ROS.

An example of a consumer of keypoints rather than a SLAM: two images start a map of points in space, each further image
is placed by the points it sees (PnP), and keyframes add points and adjust the latest ones together. There is no loop
closure. One camera cannot know the scale: the caller says how far away the scene is at the start.
"""

from edgepoint2_ros.odometry.camera import Camera
from edgepoint2_ros.odometry.monocular import MIN_COSINE, VisualOdometry

__all__ = ['MIN_COSINE', 'Camera', 'VisualOdometry']
