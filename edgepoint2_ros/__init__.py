"""EdgePoint2 keypoints and compact descriptors for ROS 2."""

import pkgutil
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgepoint2_ros.extractor import Extractor as Extractor
    from edgepoint2_ros.extractor import match_pair as match_pair
    from edgepoint2_ros.features import Features as Features
    from edgepoint2_ros.matching import match as match

# In a checkout this package hides the installed one, where the generated messages (edgepoint2_ros.msg) live.
__path__ = pkgutil.extend_path(__path__, __name__)

__version__ = '0.1.0'

__all__ = ['Extractor', 'Features', 'match', 'match_pair']
_HOMES = {'Extractor': 'extractor', 'Features': 'features', 'match': 'matching', 'match_pair': 'extractor'}


def __getattr__(name: str) -> object:
    """Import what the package offers when it is first used, so that importing a part of it stays cheap."""
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'{__name__}.{_HOMES[name]}'), name)
