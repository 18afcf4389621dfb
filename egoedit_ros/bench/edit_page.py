# SPDX-License-Identifier: Apache-2.0
"""``report.html`` of EgoEditBench: tables, and each item's frames beside its scores, worst first.

Nothing is fetched from anywhere. Up to 300 items the pictures are in the page itself, above that
they lie in a folder beside it.
"""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path

import cv2
import numpy as np

from egoedit_ros.bench.edit_jobs import picture_paths
from egoedit_ros.bench.metrics.registry import BY_NAME, LOWER, METRICS
from egoedit_ros.bench.page import STYLE, document, write_whole
from egoedit_ros.bench.paper import PUBLISHED_METRICS

MOST_INLINE = 300
MOST_PAIRS = 3
TILE = (224, 168)

_STYLE = """
.items { display: grid; gap: 12px; }
.item { display: grid; grid-template-columns: minmax(0, 3fr) minmax(0, 2fr); gap: 14px; }
.item img { width: 100%; display: block; border-radius: 4px; }
.item q { font-size: 15px; } .item p { margin: 4px 0; }
.small { font-size: 13px; color: var(--faint); overflow-wrap: anywhere; }
.item table { font-size: 13px; } .item td { padding: 1px 8px 1px 0; }
.item td:first-child { width: auto; }
.wide td, .wide th { text-align: right; white-space: nowrap; }
.wide td:first-child, .wide th:first-child { text-align: left; width: auto; }
.ours td { font-weight: 600; }
select { font: inherit; padding: 2px 6px; }
@media (max-width: 800px) { .item { grid-template-columns: 1fr; } }
"""
# Sorting only; without scripts the page is whole, sorted by the overall rank.
_SCRIPT = """
const box = document.querySelector('.items'), by = document.querySelector('#by');
by.addEventListener('change', () => {
  const key = by.value;
  const value = (e) => e.dataset[key] === undefined ? -Infinity : Number(e.dataset[key]);
  [...box.children].sort((a, b) => value(b) - value(a)).forEach((e) => box.append(e));
});
"""


def write_page(
    content: dict, items: list[dict], rank: list[float], work: Path, path: Path, name: str
) -> None:
    """Write the page.

    content: what goes into the JSON file. items: with ``values`` and ``pictures``, rank: how bad
    each is, 0 to 1. name: of the editor.
    """
    inline = len(items) <= MOST_INLINE
    path.parent.mkdir(parents=True, exist_ok=True)
    order = sorted(range(len(items)), key=lambda i: -rank[i])
    cards = [_item(items[i], rank[i], work, None if inline else path) for i in order]
    config = content["config"]
    subtitle = f"{len(items)} items · {config.get('editor', '')}"
    body = [
        f"<h1>EgoEditBench: {escape(name)}</h1>",
        f'<p class="sub">{escape(subtitle)}</p>',
        *(_problems(content["problems"]) if content["problems"] else []),
        "<h2>Beside the published results</h2>",
        _published(content, name),
        "<h2>By task</h2>",
        _by_task(content),
        _unavailable(content["unavailable"]),
        "<h2>Items, worst first</h2>",
        f'<p class="small">Sorted by {_choice(items)}. Upper row: source, lower row: edit.</p>',
        f'<div class="items">{"".join(cards)}</div>',
        f"<script>{_SCRIPT}</script>",
    ]
    style = f"{STYLE}{_STYLE}"
    write_whole(path, document(f"EgoEditBench: {name}", body, style))


def shown(name: str, value: float | None) -> str:
    """A figure in as many digits as mean something."""
    if value is None:
        return "–"
    digits = {"background_ssim": 3, "hands_kept": 0, "changed_area": 0, "background_psnr": 1}
    return f"{value:.{digits.get(name, 2)}f}"


def _published(content: dict, name: str) -> str:
    head = "".join(f"<th>{escape(BY_NAME[m].title)}</th>" for m in PUBLISHED_METRICS)
    rows = []
    for row in [*content["published"], {"method": name, "ours": True, **content["mean"]}]:
        cells = "".join(f"<td>{shown(m, row[m])}</td>" for m in PUBLISHED_METRICS)
        style = ' class="ours"' if row.get("ours") else ""
        rows.append(f"<tr{style}><td>{escape(row['method'])}</td>{cells}</tr>")
    note = (
        '<p class="small">Published rows: arXiv 2512.06065, Table 1, all 1,700 items, judged as '
        "in EditVerseBench (gpt-4o-2024-11-20). Ours is the mean over the tasks below.</p>"
    )
    table = f"<tr><th>method</th>{head}</tr>{''.join(rows)}"
    return f'<div class="box"><table class="wide">{table}</table>{note}</div>'


def _by_task(content: dict) -> str:
    names = [m.name for m in METRICS if content["mean"][m.name] is not None]
    head = "".join(f"<th>{escape(BY_NAME[n].title)}</th>" for n in names)
    rows = []
    for task, values in {**content["tasks"], "mean over tasks": content["mean"]}.items():
        count = content["counts"].get(task, sum(content["counts"].values()))
        cells = "".join(f"<td>{shown(n, values[n])}</td>" for n in names)
        rows.append(f"<tr><td>{escape(task)}</td><td>{count}</td>{cells}</tr>")
    table = f"<tr><th>task</th><th>items</th>{head}</tr>{''.join(rows)}"
    return f'<div class="box"><table class="wide">{table}</table></div>'


def _unavailable(reasons: dict[str, str]) -> str:
    if not reasons:
        return ""
    rows = "".join(
        f"<tr><td>{escape(BY_NAME[n].title)}</td><td>{escape(why)}</td></tr>"
        for n, why in reasons.items()
    )
    return f'<div class="box"><h3>Not available</h3><table>{rows}</table></div>'


def _problems(problems: list[dict]) -> list[str]:
    rows = "".join(
        f"<tr><td>{escape(p['data_id'])}</td><td>{escape(p['problem'])}</td></tr>"
        for p in problems[:200]
    )
    more = f"<p>and {len(problems) - 200} more, in the JSON file</p>" if len(problems) > 200 else ""
    return [
        f'<p class="note">{len(problems)} problems; items without a score are left out of all '
        "means.</p>",
        f"<details><summary>which</summary><table>{rows}</table>{more}</details>",
    ]


def _choice(items: list[dict]) -> str:
    options = ['<option value="rank">overall rank</option>']
    for metric in METRICS:
        if any(i["values"][metric.name] is not None for i in items):
            options.append(f'<option value="{metric.name}">{escape(metric.title)}</option>')
    return f'<select id="by">{"".join(options)}</select>'


def _item(item: dict, rank: float, work: Path, beside: Path | None) -> str:
    values = item["values"]
    data = [f'data-rank="{rank:.5f}"']
    rows = []
    for metric in METRICS:
        value = values[metric.name]
        if value is None:
            continue
        # Larger is worse, whatever the figure; those without a direction sort by less change.
        sign = 1 if metric.better == LOWER else -1
        data.append(f'data-{metric.name}="{sign * value:.6g}"')
        unit = f'<span class="small">{escape(metric.unit)}</span>'
        rows.append(
            f"<tr><td>{escape(metric.title)}</td><td>{shown(metric.name, value)} {unit}</td></tr>"
        )
    said = "".join(
        f'<p class="small">{escape(line)}</p>'
        for line in [*item.get("vlm_reasons", []), *item["notes"]]
    )
    where = f"{item['data_id']} · {item['task']} · {item['sub_task']}"
    return (
        f'<div class="box item" {" ".join(data)}><div>{_pictures(item, work, beside)}</div>'
        f"<div><q>{escape(item['instruction'])}</q>"
        f'<p class="small">{escape(where)}</p><table>{"".join(rows)}</table>{said}</div></div>'
    )


def _pictures(item: dict, work: Path, beside: Path | None) -> str:
    """One picture of up to three frames: the source above, the edit below."""
    columns = []
    for number in range(min(item["pictures"], MOST_PAIRS)):
        pair = [
            cv2.resize(cv2.imread(str(p)), TILE, interpolation=cv2.INTER_AREA)
            for p in picture_paths(work, item["data_id"], number)
        ]
        columns.append(np.vstack(pair))
    if not columns:
        return ""
    data = cv2.imencode(".jpg", np.hstack(columns), [cv2.IMWRITE_JPEG_QUALITY, 84])[1].tobytes()
    if beside is None:
        source = "data:image/jpeg;base64," + base64.b64encode(data).decode()
    else:
        folder = beside.with_name(f"{beside.stem}_frames")
        folder.mkdir(exist_ok=True)
        (folder / f"{item['data_id']}.jpg").write_bytes(data)
        source = f"{folder.name}/{escape(item['data_id'])}.jpg"
    return f'<img loading="lazy" alt="source above, edit below" src="{source}">'
