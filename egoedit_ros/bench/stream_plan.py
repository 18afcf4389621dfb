# SPDX-License-Identifier: Apache-2.0
"""The course of a stream benchmark: idle, warm-up, search, fixed rates, switches.

It knows nothing of ROS: a :class:`Rig` plays and listens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from egoedit_ros.bench import measure
from egoedit_ros.bench.stream_run import OWN, Run, figures_of, median_of, percentiles, recording_of
from egoedit_ros.errors import UserError

# Goes up when a figure of the JSON changes its meaning.
SCHEMA = "egoedit_ros/bench_stream/1"
TEXTS = ("make the blue ball red", "turn the blue ball into a green cube")
RATES = ("10", "16", "30", OWN)
# The search ends when what is known to work and what is known not to lie this close.
RESOLUTION = 1.04
# A player this much too slow was the limit itself.
PLAYER_SLACK = 0.97
SWITCH_RATE = 16.0


class Rig(Protocol):
    """Plays the input to a graph and listens to what comes out."""

    own_hz: float

    def idle(self, seconds: float) -> dict:
        """What the processes take while nothing is sent."""

    def play(self, kind: str, rate: str, seconds: float, switches: int = 0) -> Run:
        """Send frames at ``rate`` (Hz as text, or ``own``) for so long and wait for the rest.

        switches: so many instructions are given on the way, and it goes on until they took effect.
        """


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be measured.

    rates: Hz as text, or ``own``. seconds, runs: of each rate. warm_up, idle, probe: seconds of
    each. search: whether to look for the highest rate, up to ``most`` Hz with at most ``loss``
    (share). switches: instructions to change between. deadline_ms: 0 for the default.
    limit: a rate at which the graph is also run once, to see whether it is sustained; 0: none.
    """

    rates: tuple[str, ...] = RATES
    runs: int = 3
    seconds: float = 30.0
    warm_up: float = 5.0
    idle: float = 3.0
    search: bool = True
    most: float = 240.0
    probe: float = 5.0
    loss: float = 0.05
    switches: int = 20
    deadline_ms: float = 0.0
    limit: float = 0.0

    def __post_init__(self) -> None:
        for rate in self.rates:
            hertz(rate, 1.0)
        if len(set(self.rates)) < len(self.rates):
            raise UserError(f"a rate is named twice in {', '.join(self.rates)}; name each once")


def hertz(rate: str, own_hz: float) -> float:
    """A rate as a number. Raises UserError for what is neither ``own`` nor a rate."""
    if rate == OWN:
        return own_hz
    try:
        value = float(rate)
    except ValueError:
        value = math.nan
    if not 0.1 <= value <= 1000:
        raise UserError(f"rate {rate!r} is not 'own' or 0.1 to 1000 frames a second")
    return value


def rate_name(rate: str) -> str:
    """A rate in words."""
    return "own timing" if rate == OWN else f"{rate} Hz"


DEFAULT = Plan()


@dataclass(frozen=True, slots=True)
class Probe:
    """A rate that was tried: frames a second asked for, sent and received; share lost."""

    rate: float
    fps_in: float
    fps_out: float
    loss: float
    held: bool
    limited_by: str


def probe_of(run: Run, loss: float) -> Probe:
    """What a run says about its rate.

    limited_by: ``player`` when the benchmark itself could not send that fast, else ``graph``
    where more than ``loss`` was lost; empty where the rate was held.
    """
    figures = measure.figures(recording_of(run))
    fps_in = figures["fps_in"] or 0.0
    slow = fps_in < PLAYER_SLACK * run.hz
    limited_by = "player" if slow else "graph" if run.loss > loss else ""
    return Probe(
        run.hz, fps_in, figures["fps_out"] or 0.0, round(run.loss, 4), not limited_by, limited_by
    )


def highest_rate(try_rate: Callable[[float], Probe], start: float, most: float) -> dict:
    """The highest rate that is held: doubled or halved until there is one on each side, bisected.

    Returns ``peak_fps`` (None when not even 1 Hz is held), ``limited_by`` (``most`` where the
    search ended there) and all ``probes``.
    """
    probes: list[Probe] = []

    def holds(rate: float) -> bool:
        probes.append(try_rate(rate))
        return probes[-1].held

    low, high = 0.0, math.inf
    rate = min(start, most)
    while not low or math.isinf(high):
        if holds(rate):
            low = rate
            if rate >= most:
                break
            rate = min(2 * rate, most)
        else:
            high = rate
            if rate <= 1.0:
                break
            rate = max(1.0, rate / 2)
        if low and not math.isinf(high):
            break
    while low and high / low > RESOLUTION and not math.isinf(high):
        middle = math.sqrt(low * high)
        if holds(middle):
            low = middle
        else:
            high = middle
    failed = [p for p in probes if not p.held]
    limited_by = min(failed, key=lambda p: p.rate).limited_by if failed else "most"
    shown = [{name: getattr(p, name) for name in Probe.__slots__} for p in probes]
    return {"peak_fps": round(low, 2) or None, "limited_by": limited_by, "probes": shown}


def run_plan(
    rig: Rig,
    plan: Plan,
    keep: Callable[[Run], None] = lambda run: None,
    tell: Callable[[str], None] = lambda line: None,
) -> dict:
    """Measure all of a plan. Returns the part of the benchmark's JSON that one graph gives.

    keep: is given each run that is quoted, for plots. tell: one line before each step.
    """
    content: dict = {"own_hz": round(rig.own_hz, 3)}
    tell("idle")
    content["idle"] = rig.idle(plan.idle) if plan.idle else {}
    tell("warm-up")
    rig.play("warm_up", OWN, plan.warm_up)
    if plan.search:

        def try_rate(rate: float) -> Probe:
            tell(f"search: {rate:.1f} Hz")
            return probe_of(rig.play("probe", f"{rate:.6g}", plan.probe), plan.loss)

        content["search"] = highest_rate(try_rate, SWITCH_RATE, plan.most)
    content["peak_fps"] = content.get("search", {}).get("peak_fps")
    content["fixed"] = {}
    for rate in plan.rates:
        runs = []
        for number in range(plan.runs):
            tell(f"{rate_name(rate)}, run {number + 1}")
            run = rig.play("fixed", rate, plan.seconds)
            keep(run)
            runs.append(figures_of(run, plan.deadline_ms))
        content["fixed"][rate] = median_of(runs) | {"runs": runs}
    if plan.limit:
        # Not before: what the editor tells of its overhead looks back over some hundred frames.
        tell(f"limit: {plan.limit:g} Hz")
        run = rig.play("probe", f"{plan.limit:g}", max(plan.probe, min(plan.seconds, 10.0)))
        probe = probe_of(run, plan.loss)
        content["limit"] = {name: getattr(probe, name) for name in Probe.__slots__}
        content["limit"]["usage"] = run.usage
    content["instruction_switch_ms"] = {"p50": None, "p95": None}
    if plan.switches:
        tell(f"{plan.switches} switches of instruction")
        rate = SWITCH_RATE if not content["peak_fps"] else min(SWITCH_RATE, content["peak_fps"])
        run = rig.play("switches", f"{rate:.6g}", 0.0, plan.switches)
        keep(run)
        times = measure.switch_times(recording_of(run))
        content["instruction_switch_ms"] = percentiles(times, 50, 95)
        content["switches"] = {"rate": round(rate, 2), "asked": plan.switches, "ms": times}
    return content
