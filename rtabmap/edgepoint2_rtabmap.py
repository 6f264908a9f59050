"""EdgePoint2 for RTAB-Map, which finds this file by PyDetector/Path, PyMatcher/Path and PyDescriptor/Path.

`edgepoint2 rtabmap` prints these parameters.

RTAB-Map puts the folder of this file on sys.path and imports it by its bare name: hence a name that nothing else has,
and a folder with nothing else in it.
"""

try:
    from edgepoint2_ros.bridges.rtabmap_plugin import detect, extract, init, match
except Exception as error:  # RTAB-Map crashes while it reports an exception whose traceback is not ASCII
    import contextlib
    import os
    import sys

    import numpy as np

    with contextlib.suppress(Exception):  # stderr may be closed
        print(
            f'edgepoint2: no features and no matches, {type(error).__name__}: {error}. RTAB-Map runs Python '
            f'{sys.version.split()[0]}; `edgepoint2 rtabmap` prints the PYTHONPATH that it needs.',
            file=sys.stderr,
            flush=True,
        )

    def init(*_: object) -> None:
        """Do nothing: there is nothing to prepare."""

    def detect(_: object) -> tuple[np.ndarray, np.ndarray]:
        """Return no keypoints."""
        return np.zeros((0, 3), np.float32), np.zeros((0, 32), np.float32)

    def match(*_: object) -> np.ndarray:
        """Return no matches."""
        return np.zeros((0, 2), np.int32)

    def extract(_: object) -> np.ndarray:
        """Return a global descriptor that is like no other, of the size that the model has."""
        size = {'48': 768, '64': 1024}.get(os.environ.get('EDGEPOINT2_MODEL', '')[-2:], 512)
        return np.zeros((1, size), np.float32)


__all__ = ['detect', 'extract', 'init', 'match']
