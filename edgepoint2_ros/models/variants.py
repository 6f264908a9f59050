"""The 14 variants of EdgePoint2 and their names.

A variant is a network size (T, S, M, L, E) and a descriptor size (32, 48, 64); there is no T-64.
Source of the channel counts: Yao et al., "EdgePoint2", arXiv 2504.17280, and its reference implementation.
"""

import re
from dataclasses import dataclass

from edgepoint2_ros.errors import ModelError

# size: (c1, c2, c3, c4, cdetect)
_CHANNELS = {
    'T': (8, 8, 16, 24, 8),
    'S': (8, 8, 24, 32, 8),
    'M': (8, 16, 32, 48, 8),
    'L': (8, 16, 48, 64, 8),
    'E': (16, 16, 48, 64, 16),
}


@dataclass(frozen=True)
class Variant:
    """One of the 14 networks; c1 to c4 are the channels at 1/2, 1/2, 1/8 and 1/32 of the image size."""

    size: str
    descriptor_size: int
    c1: int
    c2: int
    c3: int
    c4: int
    cdetect: int

    @property
    def name(self) -> str:
        """Name as users write it, for example ``T-32``."""
        return f'{self.size}-{self.descriptor_size}'

    @property
    def csum(self) -> int:
        """Channels of the descriptor head's input: the three scales concatenated."""
        return self.c2 + self.c3 + self.c4

    def __str__(self) -> str:
        return self.name


VARIANTS = tuple(
    Variant(size, descriptor_size, *channels)
    for size, channels in _CHANNELS.items()
    for descriptor_size in (32, 48, 64)
    if (size, descriptor_size) != ('T', 64)
)
NAMES = tuple(variant.name for variant in VARIANTS)


def find_variant(name: str) -> Variant:
    """Return the variant called ``name``; ``T-32``, ``T32`` and ``t_32`` are the same.

    Raises:
        ModelError: no variant has that name; the message lists the 14.
    """
    match = re.fullmatch(r'([a-z])[-_ ]?(\d+)', str(name).strip(), re.IGNORECASE)
    if match:
        wanted = f'{match[1].upper()}-{match[2]}'
        for variant in VARIANTS:
            if variant.name == wanted:
                return variant
    raise ModelError(f'unknown model {name!r}: expected one of {", ".join(NAMES)}')
