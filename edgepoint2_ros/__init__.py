"""EdgePoint2 keypoints and compact descriptors for ROS 2."""

import pkgutil

# In a checkout this package hides the installed one, where the generated messages (edgepoint2_ros.msg) live.
__path__ = pkgutil.extend_path(__path__, __name__)

__version__ = '0.1.0'
