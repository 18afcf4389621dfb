# SPDX-License-Identifier: Apache-2.0
import egoedit_ros.openmp  # noqa: F401 - before anything loads torch
