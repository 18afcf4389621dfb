# SPDX-License-Identifier: Apache-2.0
"""Figures over time."""

import pytest

from egoedit_ros.stream.latency import Rate, Window, chunk_period_ms, transport_ms

S = 1_000_000_000


def test_rate_over_the_last_seconds():
    rate = Rate(span=3.0)
    for n in range(100):
        rate.add(n * S // 10)
    now = 99 * S // 10
    assert rate.per_second(now) == pytest.approx(10.0)
    assert rate.period_ns == S // 10
    assert rate.per_second(now + 10 * S) == 0.0
    assert Rate().per_second() == 0.0 and Rate().period_ns == 0


def test_window_forgets():
    window = Window(length=10)
    assert window.percentiles(50, 95) == [0.0, 0.0]
    for n in range(100):
        window.add(n)
    assert window.percentiles(0, 50, 100) == [90.0, 94.5, 99.0]


def test_transport_is_zero_where_clocks_are_not_comparable():
    assert transport_ms(S, S + 2_500_000) == 2.5
    assert transport_ms(0, S) == 0.0
    assert transport_ms(2 * S, S) == 0.0
    assert transport_ms(S, 3600 * S) == 0.0


def test_chunk_period():
    assert chunk_period_ms(1, 16.0) == 250.0 and chunk_period_ms(3, 24.0) == 500.0
