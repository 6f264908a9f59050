"""The torch part: the network, its weights, the export to ONNX and the dense reference. Only for making models."""

from edgepoint2_ros.network.edgepoint2 import EdgePoint2

__all__ = ['EdgePoint2']
