"""For tools that run setup.py; pyproject.toml describes the package."""

import sys

import setuptools

if int(setuptools.__version__.split('.')[0]) < 68:  # before 61 it reads no [project] and builds UNKNOWN 0.0.0
    sys.exit(f'edgepoint2_ros needs setuptools 68 or later to build, not {setuptools.__version__}')

setuptools.setup()
