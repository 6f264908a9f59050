"""`python -m edgepoint2_ros.cli` is the command `edgepoint2`."""

import sys

from edgepoint2_ros.cli import main

sys.exit(main())
