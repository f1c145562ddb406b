"""The binomial schedule: fewest advances, within its slots, every segment reversed once and in order."""

import functools

import pytest
from hypothesis import given, strategies as st

from hyprax.unroll._checkpointed import fewest_advances, make_plan, schedule, split


@functools.cache
def best(n: int, slots: int) -> int:
    """The least number of advances, by dynamic programming."""
    if n == 1:
        return 0
    if slots == 1:
        return n * (n - 1) // 2
    return min(k + best(n - k, slots - 1) + best(k, slots) for k in range(1, n))


@pytest.mark.parametrize("slots", range(1, 9))
def test_advances_are_fewest(slots):
    for n in range(1, 60):
        assert fewest_advances(n, slots) == best(n, slots)
        if n >= 2 and slots >= 2:
            k = split(n, slots)
            assert k + best(n - k, slots - 1) + best(k, slots) == best(n, slots)


@given(segments=st.integers(1, 300), slots=st.integers(1, 40))
def test_schedule_reverses_every_segment_from_its_start(segments, slots):
    kept, at, advances, reversed_ = {0}, 0, 0, []
    for move, a, b in schedule(segments, slots):
        if move == "advance":
            assert a in kept or a == at
            at, advances = b, advances + b - a
        elif move == "keep":
            assert at == b
            kept.add(b)
            assert len(kept) <= slots
        else:
            assert b == a + 1
            assert a in kept or a == at
            kept.discard(a)
            reversed_.append(a)
    assert reversed_ == list(range(segments - 1, -1, -1))
    assert advances == fewest_advances(segments, slots)


@given(steps=st.integers(1, 10**6), states=st.integers(2, 3000))
def test_plans_cover_the_run_within_the_states(steps, states):
    plan = make_plan(steps, states)
    assert plan.length * (plan.segments - 1) < steps <= plan.length * plan.segments
    assert plan.states <= max(states, 2)
    assert 1 <= plan.slots <= plan.segments


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 100, 1000, 100_000, 1_000_000])
def test_the_default_plan_makes_every_step_once_more_in_the_memory_of_a_square_root(steps):
    plan = make_plan(steps, None)
    assert plan.recomputed <= steps
    assert plan.states <= 2 * steps**0.5 + 3
