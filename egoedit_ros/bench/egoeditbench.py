# SPDX-License-Identifier: Apache-2.0
"""``bench edit --suite egoeditbench``: all items, in several processes, then the judge."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import numpy as np

from egoedit_ros.bench.edit_jobs import Job, SuiteSettings, do_job, picture_paths
from egoedit_ros.bench.judge import CRITERIA, Verdict, judge_item
from egoedit_ros.bench.judge_client import ChatClient
from egoedit_ros.bench.metrics.clip import NO_VICLIP
from egoedit_ros.bench.metrics.registry import (
    CONTROL_TASKS,
    LOWER,
    METRICS,
    NEITHER,
    TASKS,
    task_name,
)
from egoedit_ros.bench.paper import published
from egoedit_ros.data.tables import BenchItem, VideoFolder
from egoedit_ros.errors import UserError

NAMES = tuple(m.name for m in METRICS)
Tick = Callable[[int, str], None]


def plan_jobs(
    items: list[BenchItem], videos: Path, outputs: Path | None
) -> tuple[list[Job], list[dict]]:
    """(what can be done, what lacks: ``data_id`` and ``problem``). Raises UserError for nothing."""
    sources = VideoFolder(videos)
    made = VideoFolder(outputs) if outputs else None
    jobs, problems = [], []
    for item in items:
        task = task_name(item.edit_task)
        control = CONTROL_TASKS.get(task)
        source = sources.source_of(item, control)
        edited = made.find(item.data_id) if made is not None else None
        lacking = []
        if source is None:
            lacking.append(f"no source {item.source_data_id}.mp4 in {videos}")
        if made is not None and edited is None:
            lacking.append(f"no output {item.data_id}.mp4 in {outputs}")
        if lacking:
            problems.append({"data_id": item.data_id, "problem": "; ".join(lacking)})
            continue
        notes: tuple[str, ...] = ()
        if control and not source.stem.endswith(f"_{control}"):
            notes = (f"source taken as it is: no {item.source_data_id}_{control} among the videos",)
        jobs.append(Job(item, task, source, edited, notes))
    if not jobs:
        raise UserError(
            f"none of {len(items)} items can be scored; the first: {problems[0]['problem']}"
        )
    return jobs, problems


def run_jobs(settings: SuiteSettings, jobs: list[Job], workers: int, tick: Tick) -> Iterator[dict]:
    """Results as they come. One worker: in this process."""
    if workers <= 1 or len(jobs) == 1:
        for number, job in enumerate(jobs, start=1):
            yield do_job(settings, job)
            tick(number, job.item.data_id)
        return
    workers = min(workers, len(jobs))
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _ignore_interrupts)
    try:
        futures = {pool.submit(do_job, settings, job): job for job in jobs}
        for number, future in enumerate(as_completed(futures), start=1):
            yield future.result()
            tick(number, futures[future].item.data_id)
    except BrokenProcessPool:
        raise UserError(
            "a worker process died (out of memory?); run it again with fewer --workers, what is "
            "done is kept"
        ) from None
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    pool.shutdown()


def _ignore_interrupts() -> None:
    """Ctrl-C goes to all processes of a terminal; the first one ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def threads_each(workers: int) -> int:
    """Threads of a worker's model, so that all together have one for each core."""
    return max(1, len(os.sched_getaffinity(0)) // max(1, workers))


def judge_all(client: ChatClient, work: Path, results: list[dict], tick: Tick) -> list[dict]:
    """Add the VLM scores to the results that have pictures. Returns what went wrong."""
    scored = [r for r in results if "values" in r]

    def one(result: dict) -> Verdict:
        if stop:
            return Verdict(dict.fromkeys(("vlm", *CRITERIA.values())), 0, 0, list(stop), final=True)
        paths = [picture_paths(work, result["data_id"], k) for k in range(result["pictures"])]
        pairs = [(before.read_bytes(), after.read_bytes()) for before, after in paths]
        verdict = judge_item(client, result["instruction"], pairs)
        if verdict.final and not stop:
            stop.append(verdict.problems[-1].partition(": ")[2])
        return verdict

    stop: list[str] = []
    problems = []
    # Items side by side as many as requests may be; the frames of one follow one another.
    with ThreadPoolExecutor(client.settings.concurrency) as threads:
        futures = {threads.submit(one, r): r for r in scored}
        try:
            for number, future in enumerate(as_completed(futures), start=1):
                result, verdict = futures[future], future.result()
                result["values"] |= verdict.values
                result["vlm_frames"] = [verdict.judged, verdict.asked]
                result["vlm_reasons"] = verdict.reasons
                said = "; ".join(verdict.problems)
                if said:
                    problems.append({"data_id": result["data_id"], "problem": f"judge: {said}"})
                if verdict.values["vlm"] is None:
                    result["why"] |= dict.fromkeys(verdict.values, said or "not judged")
                tick(number, f"{client.sent} requests, {client.cached} from the cache")
        except BaseException:
            stop.append("interrupted")
            client.stop()
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    order = {r["data_id"]: i for i, r in enumerate(results)}
    return sorted(problems, key=lambda p: order[p["data_id"]])


def run_suite(
    settings: SuiteSettings,
    jobs: list[Job],
    workers: int,
    client: ChatClient | None,
    tick: Callable[[str, int, int, str], None],
) -> tuple[list[dict], list[dict]]:
    """(items scored, in the jobs' order; problems). tick(what, done, of, note)."""
    settings = replace(settings, threads=threads_each(workers))
    place = {job.item.data_id: i for i, job in enumerate(jobs)}
    found = run_jobs(settings, jobs, workers, lambda n, note: tick("items", n, len(jobs), note))
    results = sorted(found, key=lambda r: place[r["data_id"]])
    problems = [
        {"data_id": r["data_id"], "problem": r["problem"]} for r in results if "problem" in r
    ]
    items = [r for r in results if "problem" not in r]
    for item in items:
        item["values"] = dict.fromkeys(NAMES) | item["values"]
        item["why"] = {"text_alignment": NO_VICLIP} | item["why"]
        item["why"] |= {n: "not asked for (--judge)" for n in ("vlm", *CRITERIA.values())}
    if client is not None:
        for item in items:
            for name in ("vlm", *CRITERIA.values()):
                item["why"].pop(name, None)
        count = len(items)
        problems += judge_all(
            client, settings.work, items, lambda n, note: tick("judged", n, count, note)
        )
    return items, problems


def mean(rows: list[dict[str, float | None]]) -> dict[str, float | None]:
    """Mean of each figure over the rows that have it, None where none has."""
    out: dict[str, float | None] = {}
    for name in NAMES:
        values = [row[name] for row in rows if row.get(name) is not None]
        out[name] = sum(values) / len(values) if values else None
    return out


def summarise(items: list[dict], problems: list[dict]) -> dict:
    """The contract's ``mean`` (over tasks), ``tasks``, ``items`` and ``published``, and more.

    ``counts``: items of each task; ``unavailable``: why a figure that no item has is not there.
    """
    present = {item["task"] for item in items}
    order = [t for t in TASKS if t in present] + sorted(present - set(TASKS))
    by_task = {t: [i["values"] for i in items if i["task"] == t] for t in order}
    tasks = {t: mean(rows) for t, rows in by_task.items()}
    total = mean(list(tasks.values()))
    unavailable = {}
    for name in NAMES:
        if total[name] is None and items:
            reasons = [i["why"][name] for i in items if name in i["why"]]
            unavailable[name] = max(set(reasons), key=reasons.count) if reasons else "not measured"
    flat = [
        {k: v for k, v in item.items() if k not in ("values", "pictures")} | item["values"]
        for item in items
    ]
    return {
        "mean": total,
        "tasks": tasks,
        "counts": {t: len(rows) for t, rows in by_task.items()},
        "items": flat,
        "published": published(),
        "unavailable": unavailable,
        "problems": problems,
    }


def badness(items: list[dict]) -> list[float]:
    """How bad each item is against the others, 0 to 1: mean rank over the figures that can say so.

    With a judge only its score counts; ties share a rank.
    """
    directed = [m for m in METRICS if m.better != NEITHER]
    if any(i["values"]["vlm"] is not None for i in items):
        directed = [m for m in directed if m.name == "vlm"]
    ranks = np.full((len(directed), len(items)), np.nan)
    for row, metric in zip(ranks, directed, strict=True):
        values = np.array([i["values"][metric.name] for i in items], dtype=float)
        values = values if metric.better == LOWER else -values
        known = np.sort(values[np.isfinite(values)])
        below = np.searchsorted(known, values, "left")
        upto = np.searchsorted(known, values, "right")
        rank = (below + upto - 1) / 2 / max(1, len(known) - 1)
        row[:] = np.where(np.isfinite(values), rank, np.nan)
    known = np.isfinite(ranks)
    return (np.where(known, ranks, 0).sum(0) / np.maximum(1, known.sum(0))).tolist()
