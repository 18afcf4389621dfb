# SPDX-License-Identifier: Apache-2.0
"""Topic, stage and outcome names: the one place where each is written down.

Topics are relative: a namespace or a remap moves them. Nodes, command line, reports and tests all
take their names from here.
"""

from __future__ import annotations

# Topics of the editor node.
TOPIC_IMAGE = "image_raw"
TOPIC_EDITED = "edited/image_raw"
TOPIC_MASK = "edited/mask"
TOPIC_EDITED_INFO = "edited/camera_info"
TOPIC_INSTRUCTION = "instruction"
TOPIC_INSTRUCTION_TEXT = "instruction_text"
TOPIC_ACTIVE = "instruction/active"
TOPIC_LATENCY = "latency"
TOPIC_STATUS = "status"
TOPIC_DIAGNOSTICS = "/diagnostics"
TOPIC_CLOCK = "/clock"

COMPRESSED_SUFFIX = "compressed"
CAMERA_INFO_NAME = "camera_info"

# Where a frame's time goes, in the order in which it passes; FrameLatency has ``<stage>_ms``.
STAGES = ("transport", "buffer", "preprocess", "encode", "denoise", "decode", "publish")
STAGE_FIELDS = tuple(f"{stage}_ms" for stage in STAGES)

# Why a frame did not come out; StreamStatus has ``dropped_<cause>``, report.json ``dropped``.
DROP_CAUSES = ("transport", "policy", "error")

# FrameLatency.outcome (the message's constants) and what people are shown.
OUTCOME_EDITED = 0
OUTCOME_PASSTHROUGH = 1
OUTCOME_NAMES = {OUTCOME_EDITED: "edited", OUTCOME_PASSTHROUGH: "passthrough"}

# StreamStatus.state
STATE_INACTIVE = "inactive"
STATE_ACTIVE = "active"
STATE_PASSTHROUGH = "passthrough"
STATE_FAULT = "fault"

MAX_INSTRUCTION_CHARS = 2000


def compressed_topic(image_topic: str) -> str:
    """``<topic>/compressed``, as image_transport names it."""
    return f"{image_topic}/{COMPRESSED_SUFFIX}"


def camera_info_topic(image_topic: str) -> str:
    """The ``camera_info`` beside an image topic: ``a/image_raw`` -> ``a/camera_info``."""
    parent, slash, _ = image_topic.removesuffix(f"/{COMPRESSED_SUFFIX}").rpartition("/")
    return f"{parent}{slash}{CAMERA_INFO_NAME}"
