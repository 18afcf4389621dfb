# SPDX-License-Identifier: Apache-2.0
"""EgoEditData in its published form (tables and a folder of videos) to stored clips.

Every pair is checked: both files there and readable to their end, equal in length and size, an
instruction that says something. What fails is reported with its line and left out; the rest is
used. Other pair sets in the same form are read alike, with pictures in place of videos too: an
image edit is a clip of one frame.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from egoedit_ros.data.clip import StoredClip, clip_path, read_origin
from egoedit_ros.data.crew import run_crew
from egoedit_ros.data.folder import ClipFolder, write_windows
from egoedit_ros.data.footage import IMAGE_SUFFIXES, Cut, starts, thin
from egoedit_ros.data.tables import PAIRS_TABLE, PairRow, VideoFolder, name_in, read_pairs
from egoedit_ros.data.video import VIDEO_SUFFIXES, VideoReader
from egoedit_ros.errors import UserError

TASK = "egoeditdata"
PROBLEMS = "problems.jsonl"
# Targets of one source that go into one file: the source is then stored and encoded once.
MOST_TARGETS = 4


@dataclass(frozen=True, slots=True)
class Problem:
    """One pair that cannot be used. kind: one of :data:`KINDS`; what: in words, with names."""

    line: int
    data_id: str
    kind: str
    what: str


KINDS = {
    "row": "rows that name no data, or name it twice",
    "instruction": "empty instructions",
    "missing": "missing files",
    "corrupt": "files that cannot be read to their end",
    "length": "pairs of unequal length",
    "size": "pairs of unequal size",
}


@dataclass(slots=True)
class ImportReport:
    """What became of a table: pairs in it, pairs used, clips written or found, problems."""

    rows: int = 0
    used: int = 0
    clips: int = 0
    problems: list[Problem] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """Problems by kind."""
        return dict(Counter(p.kind for p in self.problems))

    def lines(self, most: int = 20) -> list[str]:
        """For people: each problem in a line, then the sums."""
        shown = sorted(self.problems, key=lambda p: p.line)
        lines = [f"line {p.line} ({p.data_id}): {p.what}" for p in shown[:most]]
        if len(shown) > most:
            lines.append(f"... and {len(shown) - most} more, all in {PROBLEMS}")
        for kind, count in sorted(self.counts().items()):
            lines.append(f"{count} {KINDS[kind]}")
        lines.append(f"{self.used} of {self.rows} pairs can be used; {self.clips} clips")
        return lines


@dataclass(frozen=True)
class _Group:
    """Pairs that share a source; ``first``: number of its first clip."""

    key: str
    source: Path
    targets: tuple[tuple[PairRow, Path], ...]
    first: int = 0


def check_rows(
    pairs: list[PairRow], urls: dict[str, str], videos: VideoFolder
) -> tuple[list[tuple[PairRow, Path, Path]], list[Problem]]:
    """Pairs whose rows and files are there, and what is wrong with the others."""
    good, problems, seen = [], [], set()
    for row in pairs:

        def fault(kind: str, what: str, row: PairRow = row) -> None:
            problems.append(Problem(row.line, row.data_id, kind, what))

        if not (row.data_id and row.source and row.target):
            fault("row", "data_id, source_data_id or target_data_id is empty")
        elif row.data_id in seen:
            fault("row", f"{row.data_id} is there twice")
        elif not row.instruction:
            fault("instruction", "the instruction is empty")
        else:
            files = [_find(videos, urls, name) for name in (row.source, row.target)]
            lacking = [n for n, f in zip((row.source, row.target), files, strict=True) if not f]
            if lacking:
                fault("missing", f"no video for {' and '.join(lacking)} in {videos.folder}")
            else:
                good.append((row, *files))
        seen.add(row.data_id)
    return good, problems


def _find(videos: VideoFolder, urls: dict[str, str], data_id: str) -> Path | None:
    named = name_in(urls.get(data_id, ""))
    return videos.find(data_id, *((named,) if named else ()))


def _groups(pairs: list[PairRow], good: list[tuple[PairRow, Path, Path]]) -> list[_Group]:
    """Good pairs with their source in common. Which rows belong together, and so a group's key,
    depends on the table alone, not on which files are there yet."""
    files = {row.line: (source, target) for row, source, target in good}
    by_source: dict[str, list[PairRow]] = {}
    for row in pairs:
        by_source.setdefault(row.source, []).append(row)
    groups = []
    for source, rows in by_source.items():
        for start in range(0, len(rows), MOST_TARGETS):
            part = rows[start : start + MOST_TARGETS]
            targets = tuple((row, files[row.line][1]) for row in part if row.line in files)
            if targets:
                key = f"{source} {part[0].data_id}"
                groups.append(_Group(key, files[targets[0][0].line][0], targets))
    return groups


@dataclass(frozen=True)
class _Footage:
    """A file read to its end: kept frames at the cut's size, and what it was before."""

    frames: list[np.ndarray]
    count: int
    size: tuple[int, int]


def _read(path: Path, cut: Cut) -> _Footage:
    """Raises UserError for what cannot be read to its end."""
    from egoedit_ros.stream.images import area_resize

    reader = VideoReader(path)
    stamps = reader.stamps()
    kept, frames, count = set(thin(stamps, cut.fps)), [], 0
    for index, (_, rgb) in enumerate(reader):
        if index in kept:
            frames.append(area_resize(rgb, cut.size))
        count += 1
    expected = max(len(stamps), reader.frames)
    if count < expected:
        raise UserError(f"{path} is cut off or damaged: {count} of {expected} frames decode")
    return _Footage(frames, count, reader.size)


def _examine(group: _Group, cut: Cut) -> tuple[list[StoredClip], list[Problem], int]:
    """The windows of a group, what is wrong with its pairs, and how many pairs are fine."""
    problems: list[Problem] = []

    def fault(row: PairRow, kind: str, what: str) -> None:
        problems.append(Problem(row.line, row.data_id, kind, what))

    try:
        source = _read(group.source, cut)
    except UserError as error:
        for row, _ in group.targets:
            fault(row, "corrupt", str(error))
        return [], problems, 0
    fine: list[tuple[PairRow, _Footage]] = []
    for row, path in group.targets:
        try:
            target = _read(path, cut)
        except UserError as error:
            fault(row, "corrupt", str(error))
            continue
        if target.size != source.size:
            sizes = ["{}x{}".format(*f.size) for f in (source, target)]
            fault(row, "size", f"{row.source} has {sizes[0]}, {row.target} {sizes[1]} pixels")
        elif target.count != source.count:
            counts = f"{row.source} has {source.count}, {row.target} {target.count} frames"
            fault(row, "length", counts)
        else:
            fine.append((row, target))
    if not fine:
        return [], problems, 0
    clips, length = [], cut.fitting(len(source.frames))
    for start in starts(len(source.frames), cut):
        window = slice(start, start + length)
        clips.append(
            StoredClip(
                0,
                [TASK] * len(fine),
                [row.instruction for row, _ in fine],
                np.stack(source.frames[window]),
                [np.stack(target.frames[window]) for _, target in fine],
                None,
                f"{group.source.name} {','.join(row.data_id for row, _ in fine)} @{start}",
            )
        )
    return clips, problems, len(fine)


def _work(setting: tuple[Path | None, Cut], groups: list[_Group], put) -> None:
    folder, cut = setting
    for group in groups:
        clips, problems, fine = _examine(group, cut)
        bad = {problem.line for problem in problems}
        rows = [row.data_id for row, _ in group.targets if row.line not in bad]
        # Written anew only where a run before this one could use less.
        if folder is not None and _rows_in(clip_path(folder, group.first)) != rows:
            write_windows(folder, group.first, clips)
        put((len(clips), fine, problems))


def import_pairs(
    tables: Path,
    videos: Path,
    output: Path | None,
    cut: Cut,
    workers: int | None = None,
    report: ImportReport | None = None,
) -> Iterator[tuple[int, int]]:
    """Check every pair and write the clips of the good ones; yields (groups done, of).

    output: None only checks. report: filled on the way, and written to :data:`PROBLEMS` at the
    end. Stopped and started again it goes on where it was; what failed is tried again. Raises
    UserError for tables that cannot be used, for a folder made with other options, and where not
    one pair is fine.
    """
    report = ImportReport() if report is None else report
    pairs, urls = read_pairs(tables)
    report.rows = len(pairs)
    files = VideoFolder(videos, VIDEO_SUFFIXES | IMAGE_SUFFIXES)
    good, found = check_rows(pairs, urls, files)
    report.problems += found
    groups = _groups(pairs, good)
    waiting = groups
    if output is not None:
        options = {"kind": "import", "tables": str(tables.resolve())} | cut.options()
        folder = ClipFolder(output, options)
        folder.add(group.key for group in groups)
        groups = [_numbered(group, folder) for group in groups]
        waiting = _take_over(report, output, groups, cut.windows)
    yield len(groups) - len(waiting), len(groups)
    log = None if output is None else output / PROBLEMS
    if waiting:
        done = run_crew(_work, (output, cut), waiting, workers, "importing")
        for number, (clips, fine, problems) in enumerate(done, len(groups) - len(waiting) + 1):
            report.clips += clips
            report.used += fine
            report.problems += problems
            yield number, len(groups)
    if log is not None:
        _write_problems(log, report)
    if not report.used:
        said = report.lines(1)[0] if report.problems else "no pair"
        raise UserError(f"{tables / PAIRS_TABLE}: none of {report.rows} pairs is usable; {said}")


def _numbered(group: _Group, folder: ClipFolder) -> _Group:
    return _Group(group.key, group.source, group.targets, folder.number(group.key))


def _take_over(
    report: ImportReport, folder: Path, groups: list[_Group], windows: int
) -> list[_Group]:
    """Count what earlier runs made; returns the groups left to do.

    Among them are those with a pair that failed: its file may have been mended since.
    """
    waiting = []
    for group in groups:
        if _rows_in(clip_path(folder, group.first)) != [row.data_id for row, _ in group.targets]:
            waiting.append(group)
            continue
        report.used += len(group.targets)
        report.clips += sum(clip_path(folder, group.first + i).exists() for i in range(windows))
    return waiting


def _rows_in(path: Path) -> list[str]:
    """The table's rows that a clip was made from; none where it is not there."""
    if not path.exists():
        return []
    origin = read_origin(path)
    return origin.rpartition(" @")[0].rpartition(" ")[2].split(",")


def _write_problems(path: Path, report: ImportReport) -> None:
    part = path.with_suffix(".part")
    shown = sorted(report.problems, key=lambda p: p.line)
    text = "".join(json.dumps(asdict(p), ensure_ascii=False) + "\n" for p in shown)
    part.write_text(text, encoding="utf-8")
    part.replace(path)
