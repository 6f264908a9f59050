"""The demo: a camera, the extractor and a consumer of its keypoints, three processes over DDS or one without ROS."""
