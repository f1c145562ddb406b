"""The forecast of how many tasks it takes: its words, and simulations of what happens with so many."""

import jax
import numpy as np
import pytest

from hyprax.tasks import PiecewiseFunction, forecast
from hyprax.tasks._split import split_excess_bound
from hyprax.tasks.complexity import Intervals


def bowls(n, seed):
    """Tasks `(α - c)^2` on [0, 1], and where their mean is least."""
    places = np.random.default_rng(seed).beta(4, 8, size=n)
    return [PiecewiseFunction.from_polynomials([0, 1], [[c * c, -2 * c, 1.0]]) for c in places], float(places.mean())


def test_a_forecast_says_how_many_more_and_that_it_is_none_of_a_proof():
    found = forecast(bowls(12, 0)[0], 0.1, key=jax.random.key(0), structure=Intervals(1), draws=2)
    assert 12 < found.needed < 200
    assert found.low <= found.high
    assert found.more == found.needed - 12
    assert found.worst_case is not None
    assert found.needed < found.reference < found.worst_case
    for words in (f"about {found.more:.0f} more tasks", "It is a forecast and proves nothing", "The worst case needs"):
        assert words in found.meaning()
    assert "no proof" in repr(found)
    assert "Forecast" in found._repr_html_()
    for epsilon, n, words in ((2.0, 12, "epsilon must lie between 0 and 1"), (0.1, 7, "integer >= 8")):
        with pytest.raises(ValueError, match=words):
            forecast(bowls(n, 0)[0], epsilon, key=jax.random.key(0))


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [0.05, 0.02])
def test_with_so_many_tasks_the_bound_is_what_was_asked_for_within_a_third(epsilon):
    asked, reached = [], []
    for seed in range(12):
        needed = forecast(bowls(60, seed)[0], epsilon, key=jax.random.key(seed), draws=2).needed
        duals, best = bowls(int(needed), 1000 + seed)
        reached.append(split_excess_bound(duals, best, 0.045, key=jax.random.key(seed)).bound)
        asked.append(needed)
    assert epsilon / 1.33 <= np.mean(reached) <= 1.33 * epsilon, (asked, reached)
