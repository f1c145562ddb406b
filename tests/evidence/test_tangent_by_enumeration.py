"""The tangent bound by its exact expectation over all draws: any state of the past is safe, the present is not."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evidence_oracles import curvature, log_determinant, square_root

from hyprax import evidence as ev
from hyprax.evidence._tangent import TangentState, draw

N, D, H, C, B = 4, 2, 2, 2, 2


def model(params, hyper, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


SUBSETS = jnp.asarray(list(itertools.combinations(range(N), B)), jnp.int32)
SIGNS = jnp.asarray(list(itertools.product([-1.0, 1.0], repeat=B * C))).reshape(-1, B, C, 1)


def every(function):
    """`function(data, signs)` of all draws, which are equally likely, along one leading axis."""
    over = jax.vmap(jax.vmap(function, (None, 0)), (0, None))(SUBSETS, SIGNS)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), over)


def random_problem(seed: int) -> ev.LinearisedModel:
    rng = np.random.default_rng(seed)
    params = {"w": jnp.asarray(rng.normal(size=(D, H))), "v": jnp.asarray(rng.normal(size=(H, C)))}
    x = jnp.asarray(rng.normal(size=(N, D)) * 10 ** rng.uniform(-1, 1))
    prior = ev.GaussianPrior({name: jnp.asarray(10 ** rng.uniform(-3, 2)) for name in params})
    temperature = jnp.asarray(10 ** rng.uniform(-1, 1))
    return ev.LinearisedModel(model, ev.Categorical(), prior, params, None, x, jnp.zeros(N, jnp.int32), temperature)


@eqx.filter_jit
def _truth(problem: ev.LinearisedModel, root):
    variances = jax.tree.leaves(problem.prior.variances(problem.params))
    return log_determinant(model, problem.params, None, problem.inputs, root, variances, problem.temperature)


def truth(problem: ev.LinearisedModel) -> float:
    return float(_truth(problem, square_root(curvature("categorical", np.asarray(problem.logits())))))


def of_all_draws(estimator: ev.AdaptiveTangent):
    """U of every draw at one state, and the state after each."""
    return eqx.filter_jit(lambda problem, state: every(lambda d, s: estimator.drawn(problem, d, s, state)))


def slip(value: float) -> float:
    """The most that rounding could move an expectation of that size."""
    return 1e-9 * (1 + abs(value))


def test_a_draw_is_one_of_those_enumerated():
    problem = random_problem(0)
    keys = jax.random.split(jax.random.key(0), 2000)
    data, signs = jax.vmap(lambda key: draw(problem, B, key))(keys)
    data = np.sort(np.asarray(data), axis=1)
    pairs = [tuple(d) for d in data.tolist()]
    assert {tuple(s) for s in SUBSETS.tolist()} == set(pairs)
    assert min(pairs.count(tuple(s)) for s in SUBSETS.tolist()) > 2000 / 6 - 5 * np.sqrt(2000 * 5 / 36)
    patterns, counts = np.unique(np.asarray(signs).reshape(2000, -1), axis=0, return_counts=True)
    assert len(patterns) == 2 ** (B * C)
    assert counts.min() > 2000 / 16 - 5 * np.sqrt(2000 / 16)


@pytest.mark.parametrize("decay", [0.0, 0.8])
def test_the_bound_holds_in_expectation_at_the_state_of_any_past(decay: float):
    """For 300 problems: at a first state, and at the state after each of the 96 first draws."""
    estimator = ev.AdaptiveTangent(B, decay, refresh=1)
    step = of_all_draws(estimator)
    after = eqx.filter_jit(
        lambda problem, states: jax.lax.map(
            lambda state: jnp.mean(every(lambda d, s: estimator.drawn(problem, d, s, state)[0].upper)), states
        )
    )
    init = eqx.filter_jit(estimator.init)
    for seed in range(300):
        problem = random_problem(seed)
        exact = truth(problem)
        sides, states = step(problem, init(problem, jax.random.key(seed)))
        assert np.mean(sides.upper) > exact - slip(exact)
        if seed < 60:
            assert np.min(after(problem, states)) > exact - slip(exact)


def test_the_bound_holds_at_any_basis_and_any_guess():
    estimator = ev.AdaptiveTangent(B)
    step, init = of_all_draws(estimator), eqx.filter_jit(estimator.init)
    for seed in range(300):
        problem, rng = random_problem(1000 + seed), np.random.default_rng(seed)
        state = init(problem, jax.random.key(seed))

        def wild(x: jax.Array, rng=rng) -> jax.Array:
            return jnp.asarray(np.exp(rng.normal(0, 4, x.shape)))

        def turned(x: jax.Array, rng=rng) -> jax.Array:
            return jnp.asarray(np.linalg.qr(rng.normal(size=x.shape))[0])

        state = eqx.tree_at(
            lambda s: (s.squares, s.basis),
            state,
            (jax.tree.map(wild, state.squares), jax.tree.map(turned, state.basis)),
        )
        exact = truth(problem)
        assert np.mean(step(problem, state)[0].upper) > exact - slip(exact)


def test_a_state_that_knows_the_draw_breaks_the_bound():
    """With the rows of the draw themselves in s̃: what keeping past and present apart is for."""
    estimator = ev.AdaptiveTangent(B, 0.0, refresh=1)

    @eqx.filter_jit
    def peeking(problem: ev.LinearisedModel, state: TangentState):
        def one(data, signs):
            _, known = estimator.drawn(problem, data, signs, state)
            return estimator.drawn(problem, data, signs, known)[0].upper

        return jnp.mean(every(one))

    broken, init = 0, eqx.filter_jit(estimator.init)
    for seed in range(100):
        problem = random_problem(seed)
        peeked = float(peeking(problem, init(problem, jax.random.key(seed))))
        broken += peeked < truth(problem) * (1 - 1e-6)
    assert broken > 10


def test_after_many_draws_it_is_nearly_ekfac_of_all_data():
    """The same weights all along: half of the slack of one draw's own reference, or less."""
    rng = np.random.default_rng(7)
    params = {"w": jnp.asarray(rng.normal(size=(6, 8))), "v": jnp.asarray(rng.normal(size=(8, 3)))}
    data = jnp.asarray(rng.normal(size=(200, 6))), jnp.asarray(rng.integers(0, 3, 200))
    problem = ev.linearise(model, params, data, likelihood=ev.Categorical(), prior=ev.GaussianPrior(2.0))
    nothing = jax.random.key(0)
    all_data = float(eqx.filter_jit(ev.FullData(ev.structures.EKFAC()))(problem, nothing).upper)
    once = eqx.filter_jit(ev.Tangent(20, 20))
    own = np.mean([once(problem, jax.random.key(i)).upper for i in range(100)])
    estimator = ev.AdaptiveTangent(20, decay=0.95)
    state, step = eqx.filter_jit(estimator.init)(problem, nothing), eqx.filter_jit(estimator)
    values = []
    for i in range(200):
        sides, state = step(problem, jax.random.key(i), state)
        values.append(float(sides.upper))
    error = np.std(values[50:]) / np.sqrt(150)
    assert np.mean(values[50:]) - all_data < 0.5 * (own - all_data)
    assert np.mean(values[50:]) > truth_of(problem) - 3 * error


def truth_of(problem: ev.LinearisedModel) -> float:
    return float(eqx.filter_jit(ev.FullData())(problem, jax.random.key(0)).upper)
