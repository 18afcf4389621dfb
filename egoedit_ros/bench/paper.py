# SPDX-License-Identifier: Apache-2.0
"""Results that the EgoEdit paper prints for EgoEditBench (arXiv 2512.06065, Table 1)."""

from __future__ import annotations

SOURCE = "arXiv 2512.06065, Table 1"
PUBLISHED_METRICS = ("vlm", "pickscore", "text_alignment", "clip_consistency")

# Method, whether it edits a live stream, and the four figures of PUBLISHED_METRICS.
_ROWS = (
    ("TokenFlow", False, 4.99, 18.91, 15.89, 95.04),
    ("InsV2V", False, 5.24, 18.81, 14.92, 94.01),
    ("Lucy Edit", False, 5.44, 18.87, 15.03, 94.41),
    ("Senorita-2M", False, 7.52, 18.85, 16.25, 95.86),
    ("EgoEdit", False, 7.76, 19.21, 16.89, 96.70),
    ("StreamDiffusion", True, 4.32, 18.92, 14.15, 86.83),
    ("StreamDiffusionV2", True, 2.55, 18.63, 12.75, 94.31),
    ("EgoEdit-RT", True, 7.71, 19.13, 16.34, 96.41),
)


def published() -> list[dict]:
    """The paper's rows: ``method``, ``streaming``, ``source`` and the four figures."""
    return [
        {"method": method, "streaming": streaming, "source": SOURCE}
        | dict(zip(PUBLISHED_METRICS, figures, strict=True))
        for method, streaming, *figures in _ROWS
    ]
