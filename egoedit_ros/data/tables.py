# SPDX-License-Identifier: Apache-2.0
"""The published tables of EgoEditBench and EgoEditData, and the videos that they name.

``egoeditbench_data_table.csv``, ``egoeditdata_data_table.csv``: ``data_id``, ``data_url``.
``egoeditbench_edits_table.csv``: ``data_id``, ``source_data_id``,
``source_to_target_edit_prompt``, ``edit_task``, ``sub_edit_task``.
``egoeditdata_edits_table.csv``: ``data_id``, ``source_data_id``, ``target_data_id``,
``source_to_target_edit_prompt``.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlparse

from egoedit_ros.data.video import VIDEO_SUFFIXES
from egoedit_ros.errors import UserError

DATA_TABLE = "egoeditbench_data_table.csv"
EDITS_TABLE = "egoeditbench_edits_table.csv"
DATA_COLUMNS = ("data_id", "data_url")
EDITS_COLUMNS = (
    "data_id",
    "source_data_id",
    "source_to_target_edit_prompt",
    "edit_task",
    "sub_edit_task",
)
PAIRS_DATA_TABLE = "egoeditdata_data_table.csv"
PAIRS_TABLE = "egoeditdata_edits_table.csv"
PAIRS_COLUMNS = ("data_id", "source_data_id", "target_data_id", "source_to_target_edit_prompt")


@dataclass(frozen=True, slots=True)
class BenchItem:
    """One edit to be done. ``url``: of the source, empty where the tables do not say."""

    data_id: str
    source_data_id: str
    instruction: str
    edit_task: str
    sub_edit_task: str
    url: str = ""


def read_table(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """Rows of a CSV file that must have ``columns``. Raises UserError."""
    if not path.is_file():
        raise UserError(f"no {path.name} in {path.parent}; put the published tables there")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [c for c in columns if c not in (reader.fieldnames or ())]
            if missing:
                raise UserError(
                    f"{path} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; "
                    f"it has: {', '.join(reader.fieldnames or ()) or 'none'}"
                )
            return [{c: (row[c] or "").strip() for c in columns} for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no CSV table in UTF-8 ({error}); download it again") from None


@dataclass(frozen=True, slots=True)
class PairRow:
    """One training pair: from which video to which, and the words. line: in the table."""

    line: int
    data_id: str
    source: str
    target: str
    instruction: str


def read_pairs(folder: Path) -> tuple[list[PairRow], dict[str, str]]:
    """The pairs of EgoEditData in the table's order, and the addresses by ``data_id``.

    Only what makes the table useless is an error here (UserError); what is wrong with single rows
    is for :mod:`egoedit_ros.data.importing` to report.
    """
    if not folder.is_dir():
        raise UserError(f"no such folder: {folder}; give the one with {PAIRS_TABLE}")
    rows = read_table(folder / PAIRS_TABLE, PAIRS_COLUMNS)
    if not rows:
        raise UserError(f"{folder / PAIRS_TABLE} has no rows; download it again")
    urls: dict[str, str] = {}
    if (folder / PAIRS_DATA_TABLE).exists():
        table = read_table(folder / PAIRS_DATA_TABLE, DATA_COLUMNS)
        urls = {row["data_id"]: row["data_url"] for row in table}
    pairs = [
        PairRow(
            line,
            row["data_id"],
            row["source_data_id"],
            row["target_data_id"],
            row["source_to_target_edit_prompt"],
        )
        for line, row in enumerate(rows, start=2)
    ]
    return pairs, urls


def read_bench(folder: Path) -> list[BenchItem]:
    """All edits of the benchmark, in the table's order. Raises UserError.

    The table of data is used where it is there: videos may be named as in its addresses.
    """
    if not folder.is_dir():
        raise UserError(f"no such folder: {folder}; give the one with {EDITS_TABLE}")
    edits_path, data_path = folder / EDITS_TABLE, folder / DATA_TABLE
    rows = read_table(edits_path, EDITS_COLUMNS)
    urls: dict[str, str] = {}
    if data_path.exists():
        urls = {row["data_id"]: row["data_url"] for row in read_table(data_path, DATA_COLUMNS)}
    items: list[BenchItem] = []
    seen: set[str] = set()
    for number, row in enumerate(rows, start=2):
        for column in ("data_id", "source_data_id"):
            if not row[column] or Path(row[column]).name != row[column] or row[column] == "..":
                raise UserError(f"{edits_path}, line {number}: {column} is {row[column]!r}")
        if row["data_id"] in seen:
            raise UserError(f"{edits_path}, line {number}: {row['data_id']} is there twice")
        seen.add(row["data_id"])
        items.append(
            BenchItem(
                row["data_id"],
                row["source_data_id"],
                row["source_to_target_edit_prompt"],
                row["edit_task"],
                row["sub_edit_task"],
                urls.get(row["source_data_id"], ""),
            )
        )
    if not items:
        raise UserError(f"{edits_path} has no rows; download it again")
    return items


class VideoFolder:
    """Video files of a folder and its subfolders, by name without suffix.

    suffixes: what counts as one.
    """

    def __init__(self, folder: Path, suffixes: frozenset[str] = VIDEO_SUFFIXES) -> None:
        if not folder.is_dir():
            raise UserError(f"no such folder: {folder}; give the one with the videos")
        self.folder = folder
        self._files: dict[str, Path] = {}
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in suffixes and not path.name.startswith("."):
                self._files.setdefault(path.stem, path)

    def __len__(self) -> int:
        return len(self._files)

    def find(self, *stems: str) -> Path | None:
        """The first of these that is there."""
        return next((self._files[s] for s in stems if s in self._files), None)

    def source_of(self, item: BenchItem, control: str | None = None) -> Path | None:
        """The source video of an edit: named by its id, or as in the address that the table gives.

        control: ``depth``, ``sketch`` or ``pose`` where the source is such a map of the video; it
        is looked for as ``<source_data_id>_<control>`` first, then as the source itself.
        """
        named = name_in(item.url)
        mapped = (f"{item.source_data_id}_{control}",) if control else ()
        return self.find(*mapped, item.source_data_id, *((named,) if named else ()))


def name_in(url: str) -> str:
    """The file name without suffix in an address; '' where there is none."""
    return PurePosixPath(unquote(urlparse(url).path)).stem
