"""Split bounds for several hyperparameters: what they cover, what they say, simulations."""

import jax
import numpy as np
import pytest

from hyprax.tasks import BoxDual, Task, _split_boxes as split_boxes, erm_box, gap, ridge_dual
from hyprax.tasks.complexity import Bounded, RidgePenalties

DOMAIN = ((1e-2, 10.0), (1e-2, 10.0))


def pool(count, d=2):
    """Tasks of a finite population, and their duals in a penalty for each feature."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        X = rng.normal(size=(16, d))
        y = X @ (np.array([1.0, 0.2])[:d] * rng.normal(size=d)) + 0.7 * rng.normal(size=16)
        found.append(Task.hold_out(X[:8], y[:8] / 3, X[8:], y[8:] / 3))
    return found, [BoxDual.ridge(t, np.arange(d), DOMAIN[:d]).clip(1.0) for t in found]


def drawn(duals, n, seed):
    return [duals[i] for i in np.random.default_rng(seed).integers(len(duals), size=n)]


def test_the_sets_and_the_cells_cover_the_domain_and_all_points_are_within_their_ranges(monkeypatch):
    monkeypatch.setattr(split_boxes, "_LEAVES", 48)
    duals = pool(20)[1]
    ground = split_boxes.BoxGround.of(duals, 1.0, 0.3, jax.random.key(0))
    assert sorted([*ground.choosing, *ground.certifying]) == list(range(20))
    assert ground.shares.sum() == pytest.approx(1)
    rng = np.random.default_rng(1)
    cells = ground._plan(ground.sets[0], 0.01)
    assert cells[1].sum() == pytest.approx(0.01)
    for x in np.exp(rng.uniform(*np.log(DOMAIN).T, size=(15, 2))):
        losses = np.array([f(x) for f in duals])
        for nodes in (ground.sets, cells[0]):
            holding = [s for s in nodes if np.all((ground.tree.low[s] <= x) & (x <= ground.tree.high[s]))]
            assert holding
            for node in holding:
                assert np.all(ground.lo[:, node] <= losses + 1e-12)
                assert np.all(losses <= ground.hi[:, node] + 1e-12)


def test_the_bound_speaks_of_a_box_and_falls_with_the_number_of_tasks(monkeypatch):
    monkeypatch.setattr(split_boxes, "_LEAVES", 64)
    duals = pool(25)[1]
    best = erm_box(duals, gap=1e-2).hyper
    found = [gap(Bounded(), n, 0.1, drawn(duals, n, 2), hyper=best, key=jax.random.key(0)) for n in (40, 320)]
    assert found[1].value < found[0].value
    assert found[0].kind == "certified"
    assert np.all(found[-1].hyper == best)
    assert f"at the hyperparameter {best[0]:.6g}, {best[1]:.6g}" in str(found[-1])
    assert " x [" in str(found[-1])
    assert " x [" in found[-1]._repr_html_()
    below = gap(
        RidgePenalties(2, 2), 320, 0.1, drawn(duals, 320, 2), target="deviation", hyper=best, key=jax.random.key(0)
    )
    assert below.name == "split"
    assert "crossings (RidgePenalties)" in below.candidates
    assert 0 < below.value < 0.3
    with pytest.raises(ValueError, match="one for each of n = 3 tasks"):
        gap(Bounded(), 3, 0.1, duals, key=jax.random.key(0))
    with pytest.raises(ValueError, match="Use its method `clip`"):
        gap(Bounded(range=0.5), 25, 0.1, duals, key=jax.random.key(0))


def test_with_one_hyperparameter_it_is_near_the_bound_of_the_exact_dual():
    tasks_, duals = pool(60, d=1)
    line = [ridge_dual(t, DOMAIN[0]).clip(1.0) for t in tasks_]
    exact = gap(Bounded(), 60, 0.1, line, key=jax.random.key(3))
    boxes = gap(Bounded(), 60, 0.1, duals, key=jax.random.key(3))
    assert 0.5 * exact.value < boxes.value < 2 * exact.value


@pytest.mark.slow
@pytest.mark.parametrize(("delta", "draws"), [(0.5, 200), (0.1, 100)])
def test_violations_are_as_rare_as_promised(delta, draws, monkeypatch):
    monkeypatch.setattr(split_boxes, "_LEAVES", 32)
    duals = pool(25)[1]
    least = erm_box(duals, gap=1e-4).lower
    failed = 0
    for seed in range(draws):
        sample = drawn(duals, 30, seed)
        best = erm_box(sample, gap=1e-2).hyper
        ground = split_boxes.BoxGround.of(sample, 1.0, 0.15, jax.random.key(seed))
        failed += np.mean([f(best) for f in duals]) - least > ground.excess(best, delta, "wealth").bound
    assert failed / draws <= delta + 2 * np.sqrt(delta * (1 - delta) / draws)
