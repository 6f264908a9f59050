"""Maps: photographs, a video or a bag to a COLMAP model, poses and a page that shows them."""

from edgepoint2_ros.bridges.mapping.build import Job, Summary, build_map

__all__ = ['Job', 'Summary', 'build_map']
