"""The lifecycle node; the only part of the library that needs ROS."""
