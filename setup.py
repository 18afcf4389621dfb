# SPDX-License-Identifier: Apache-2.0
"""For pip: the ROS-free part of the package (colcon builds the whole with CMakeLists.txt).

Everything is in pyproject.toml; this file serves tools that still look for it.
"""

from setuptools import setup

setup()
