"""Install the ROS-free library and the command edgepoint2; setup.cfg says what that is."""

from setuptools import setup

setup()
