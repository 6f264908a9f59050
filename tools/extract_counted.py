"""Extract the features of three images, between calls of getpriority: tools/count_instructions.c counts between them.

python tools/extract_counted.py MODEL BACKEND PRECISION
"""

import os
import sys

from edgepoint2_ros.engines.check import draw_scene
from edgepoint2_ros.extractor import Extractor

SHAPE = 480, 640, 1
model, backend, precision = sys.argv[1:]
extractor = Extractor(model, backend=backend, precision=precision, threads=1)
image = draw_scene(*SHAPE)
extractor.extract(image)  # the first image of a size prepares for it
for _ in range(2):
    os.getpriority(os.PRIO_PROCESS, 0)
    extractor.extract(image)
os.getpriority(os.PRIO_PROCESS, 0)
