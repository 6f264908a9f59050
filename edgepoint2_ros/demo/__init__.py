"""The demo: a camera, the extractor and a consumer of its keypoints, as three processes over DDS."""
