"""Estimators against dense float64 references: values, sides, derivatives, unbiasedness, and laplace-torch."""

import itertools

import equinox as eqx
import frozen_network as frozen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evidence_oracles import curvature, log_determinant, softmax, square_root

from hyprax import evidence as ev
from hyprax.evidence._structures import Full
from thoroughness import slow

N, D, H, C = 14, 3, 4, 3
ALL = N * (C - 1)


estimate = eqx.filter_jit(lambda estimator, problem, key: estimator(problem, key))
"""Compiled as a whole: faster than operation by operation."""


def model(params, hyper, x):
    return jnp.tanh((x * hyper) @ params["first"]["w"] + params["first"]["b"]) @ params["head"]


def case(seed: int = 0, precision=0.5, temperature: float = 1.3):
    rng = np.random.default_rng(seed)
    params = {
        "first": {"w": jnp.asarray(rng.normal(size=(D, H))), "b": jnp.asarray(rng.normal(size=H))},
        "head": jnp.asarray(rng.normal(size=(H, C))),
    }
    data = (jnp.asarray(rng.normal(size=(N, D))), jnp.asarray(rng.integers(0, C, N)))
    hyper = jnp.asarray(np.exp(rng.normal(size=D) / 3))
    return ev.linearise(
        model,
        params,
        data,
        hyper,
        likelihood=ev.Categorical(),
        prior=ev.GaussianPrior(precision),
        temperature=temperature,
    )


def dense(problem: ev.LinearisedModel) -> float:
    root = square_root(curvature("categorical", np.asarray(problem.logits())))
    variances = jax.tree.leaves(problem.prior.variances(problem.params))
    return float(
        log_determinant(
            model, problem.params, problem.hyper, problem.inputs, root, variances, float(problem.temperature)
        )
    )


EXACT = {
    "full data": ev.FullData(),
    "chain of all rows": ev.Chain(ev.designs.Rows(ALL, "uniform")),
    "chain of all rows, scored": ev.Chain(ev.designs.Rows(ALL)),
    "chain of all rows, stick-breaking": ev.Chain(ev.designs.Rows(ALL, "uniform"), ev.roots.StickBreaking((1, 2, 0))),
    "all data as blocks": ev.Chain(ev.designs.Blocks(N)),
    "all data in one block": ev.Partition(N),
    "all data in one block, rows": ev.Partition(N, "all", ev.roots.Rows()),
}
PRECISIONS = {
    "one": 0.5,
    "layer": {"first": 0.3, "head": 2.0},
    "weight": {"first": {"w": jnp.arange(1.0, 13.0).reshape(3, 4) / 7, "b": 0.2}, "head": 1.0},
}


@pytest.mark.parametrize(
    ("name", "prior"),
    [*((name, "one") for name in EXACT), ("full data", "layer"), ("chain of all rows, scored", "weight")],
)
def test_with_all_rows_every_estimator_is_exact(name: str, prior: str):
    problem = case(1, PRECISIONS[prior])
    sides = estimate(EXACT[name], problem, jax.random.key(0))
    truth = dense(problem)
    np.testing.assert_allclose(sides.upper, truth, rtol=1e-10)
    if sides.lower is not None:
        np.testing.assert_allclose(sides.lower, truth, rtol=1e-10)


@pytest.mark.parametrize("name", ["full data", "chain of all rows", "all data as blocks", "tensor blocks", "EKFAC"])
def test_derivatives_are_those_of_the_dense_evidence(name: str):
    """In log-precisions, temperature and an input scale inside the model, against automatic differentiation."""
    estimator = {
        **EXACT,
        "tensor blocks": ev.FullData(ev.structures.TensorBlocks()),
        "EKFAC": ev.FullData(ev.structures.EKFAC()),
    }[name]
    built = case(2)

    def parts(log_precision, hyper, log_temperature):
        prior = ev.GaussianPrior({"first": jnp.exp(log_precision[0]), "head": jnp.exp(log_precision[1])})
        return prior, hyper, jnp.exp(log_temperature)

    def ours(log_precision, hyper, log_temperature):
        prior, hyper, temperature = parts(log_precision, hyper, log_temperature)
        return ev.log_evidence(
            model,
            built.params,
            (built.inputs, built.targets),
            hyper,
            likelihood=ev.Categorical(),
            prior=prior,
            estimator=estimator,
            temperature=temperature,
            key=jax.random.key(0),
        ).value

    def theirs(log_precision, hyper, log_temperature):
        prior, hyper, temperature = parts(log_precision, hyper, log_temperature)
        f = jax.vmap(lambda x: model(built.params, hyper, x))(built.inputs)
        fit = jnp.sum(jax.nn.log_softmax(f)[jnp.arange(N), built.targets]) / temperature
        variances = [1 / prior.precision[k] for k in ("first", "first", "head")]

        def root(f):
            p = jax.nn.softmax(f)
            half = jnp.sqrt(p)
            return jax.vmap(jnp.diag)(half) - p[:, :, None] * half[:, None, :]

        penalty = sum(
            p * jnp.sum(w**2)
            for p, w in zip(
                [prior.precision[k] for k in ("first", "first", "head")], jax.tree.leaves(built.params), strict=True
            )
        )
        if name == "tensor blocks":
            from evidence_oracles import jacobian

            j = jacobian(model, built.params, hyper, built.inputs)
            rows = jnp.einsum("ncp,ncr->nrp", j, root(f)).reshape(N * C, -1)
            cuts, total = np.cumsum([0] + [w.size for w in jax.tree.leaves(built.params)]), 0.0
            for (a, b), v in zip(itertools.pairwise(cuts), variances, strict=True):
                total = total + jnp.linalg.slogdet(jnp.eye(b - a) + v * rows[:, a:b].T @ rows[:, a:b] / temperature)[1]
        else:
            total = log_determinant(model, built.params, hyper, built.inputs, root, variances, temperature)
        return fit - 0.5 * penalty - 0.5 * total

    at = (jnp.asarray([0.3, -0.7]), built.hyper, jnp.asarray(0.2))
    if name == "EKFAC":  # its own definition has frozen bases: finite differences would move them
        assert ours(*at) < theirs(*at)
        return
    got, want = (jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2)))(*at) for f in (ours, theirs))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)


def test_learned_noise_has_the_derivative_of_the_dense_evidence():
    problem = case(3)
    targets = jnp.asarray(np.random.default_rng(0).normal(size=(N, C)))

    def ours(log_scale):
        return ev.log_evidence(
            model,
            problem.params,
            (problem.inputs, targets),
            problem.hyper,
            likelihood=ev.Gaussian(jnp.exp(log_scale)),
            prior=ev.GaussianPrior(0.5),
            estimator=ev.Chain(ev.designs.Rows(N * C, "uniform")),
            key=jax.random.key(0),
        ).value

    def theirs(log_scale):
        f, scale = problem.logits(), jnp.exp(log_scale)
        fit = jnp.sum(jax.scipy.stats.norm.logpdf(targets, f, scale))
        root = jnp.broadcast_to(jnp.eye(C) / scale, (N, C, C))
        variances = [jnp.asarray(2.0)] * 3
        logdet = log_determinant(model, problem.params, problem.hyper, problem.inputs, root, variances, 1.0)
        return fit - 0.25 * sum(jnp.sum(w**2) for w in jax.tree.leaves(problem.params)) - 0.5 * logdet

    got, want = (jax.jit(jax.value_and_grad(f))(jnp.asarray(-0.4)) for f in (ours, theirs))
    np.testing.assert_allclose(got, want, rtol=1e-9)


BOUNDS = {
    "tensor blocks": ev.FullData(ev.structures.TensorBlocks()),
    "EKFAC": ev.FullData(ev.structures.EKFAC()),
    "diagonal": ev.FullData(ev.structures.Diagonal()),
    "one row": ev.Chain(ev.designs.OneRow(6)),
    "one row, scored": ev.Chain(ev.designs.OneRow(6, scored=True)),
    "two-phase": ev.Chain(ev.designs.OneRow(5, first=10), ev.roots.StickBreaking()),
    "scored": ev.Chain(ev.designs.Rows(8)),
    "poisson": ev.Chain(ev.designs.Rows(8, "poisson"), ev.roots.Rows()),
    "uniform": ev.Chain(ev.designs.Rows(8, "uniform")),
    "blocks": ev.Chain(ev.designs.Blocks(4)),
    "tangent": ev.Tangent(8),
    "tangent, reference": ev.Tangent(6, 10),
    "subset": ev.Partition(5),
    "subset, each": ev.Partition(5, "each"),
    "subset, one": ev.Partition(5, "one", ev.roots.Rows()),
    "subset, grouped": ev.Partition(4, grouped=True),
    "doubly, tensors": ev.Partition(5, "each", structure=ev.structures.TensorBlocks()),
    "doubly, EKFAC": ev.Partition(5, "one", structure=ev.structures.EKFAC()),
    "doubly, diagonal": ev.Partition(5, structure=ev.structures.Diagonal()),
}


@pytest.mark.parametrize(
    "name", [n if i % 3 == 1 else pytest.param(n, marks=pytest.mark.slow) for i, n in enumerate(BOUNDS)]
)
def test_bounds_are_on_their_side_within_three_standard_errors(name: str):
    estimator, draws = BOUNDS[name], 400
    assert estimator.kind == "bound"
    for seed, precision in ((4, 0.01), (5, 3.0)):
        problem = case(seed, precision)
        sides = jax.jit(jax.vmap(lambda k, p=problem: estimator(p, k)))(jax.random.split(jax.random.key(seed), draws))
        truth, upper = dense(problem), np.asarray(sides.upper)
        error = upper.std() / np.sqrt(draws)
        assert upper.mean() + 3 * error > truth * (1 - 1e-10)
        if sides.lower is not None:
            lower = np.asarray(sides.lower)
            assert lower.mean() - 3 * lower.std() / np.sqrt(draws) < truth * (1 + 1e-10)
            assert np.all(lower <= upper * (1 + 1e-12))


@pytest.mark.parametrize(
    ("where", "names"),
    [
        slow(lambda p: p["head"], {"head"}),
        (lambda p: dict(p["first"]), {"b", "w"}),  # a view made afresh, as models of Flax hand out
        slow(lambda p: (p["head"], p["first"]), {"head", "b", "w"}),  # more weights than rows: by the kernel
    ],
    ids=("head", "a view", "all"),
)
def test_chosen_layers_are_the_determinant_of_their_tensors(where, names):
    problem = case(precision=PRECISIONS["layer"])
    root = square_root(curvature("categorical", np.asarray(problem.logits())))
    variances = [
        variance if path[-1].key in names else 0 * variance
        for path, variance in jax.tree_util.tree_leaves_with_path(problem.prior.variances(problem.params))
    ]
    want = log_determinant(model, problem.params, problem.hyper, problem.inputs, root, variances, 1.3)
    got = ev.FullData(ev.structures.LastLayer(where))(problem, jax.random.key(0)).upper
    np.testing.assert_allclose(got, want, rtol=1e-10)


def test_what_is_no_bound_says_so():
    for estimator in (
        ev.FullData(ev.structures.KFAC()),
        ev.FullData(ev.structures.LastLayer(lambda p: p["head"])),
        ev.Chain(midpoint=True),
        ev.Lanczos(),
        ev.Partition(5, "each", ev.roots.Rows(covariance=False)),
        ev.Partition(5, structure=ev.structures.KFAC()),
        ev.Chain(ev.designs.OneRow(5), ev.roots.Rows(covariance=False)),
        ev.Choice((ev.Chain(), ev.Chain(midpoint=True))).estimators[1],
    ):
        assert estimator.kind == "estimated"
    assert ev.Choice().kind == "bound"
    assert ev.Choice((ev.Chain(), ev.Chain(midpoint=True))).kind == "estimated"


def test_the_released_heuristic_falls_below_the_truth_where_outputs_oppose_each_other():
    """With f = (u, -u) the truth is log|I + 4 S|, the heuristic 2 log|I + S|: below it for S < 2."""

    def opposed(params, hyper, x):
        u = x @ params
        return jnp.stack([u, -u])

    rng = np.random.default_rng(10)
    data = (jnp.asarray(rng.normal(size=(N, D))), jnp.asarray(rng.integers(0, 2, N)))
    problem = ev.linearise(
        opposed, jnp.asarray(rng.normal(size=D)), data, likelihood=ev.Categorical(), prior=ev.GaussianPrior(50.0)
    )
    truth = estimate(ev.FullData(), problem, jax.random.key(0)).upper
    heuristic = estimate(ev.Partition(N, "each", ev.roots.Rows(covariance=False)), problem, jax.random.key(0)).upper
    assert heuristic < 0.9 * truth
    for root in (ev.roots.Rows(), ev.roots.StickBreaking()):
        assert estimate(ev.Partition(N, "each", root), problem, jax.random.key(0)).upper > truth * (1 - 1e-10)


@pytest.mark.parametrize("outputs", ["all", "each", "one"])
def test_subset_gradients_are_unbiased_over_all_partitions(outputs):
    """The mean gradient over draws against that of the mean over all subsets, written out."""
    problem = case(6)
    size, draws = 2, 4000

    def value(log_precision, key):

        moved = eqx.tree_at(lambda p: p.prior, problem, ev.GaussianPrior(jnp.exp(log_precision)))
        return ev.Partition(size, outputs, ev.roots.Rows())(moved, key).upper

    keys = jax.random.split(jax.random.key(7), draws)
    grads = np.asarray(jax.jit(jax.vmap(jax.grad(value), (None, 0)))(jnp.asarray(-0.5), keys))

    p = softmax(np.asarray(problem.logits()))
    rows = np.einsum("nc,cd->ncd", np.sqrt(p), np.eye(C)) - np.sqrt(p)[:, :, None] * p[:, None, :]
    from evidence_oracles import jacobian

    phi = np.einsum("nrc,ncp->nrp", rows, np.asarray(jacobian(model, problem.params, problem.hyper, problem.inputs)))
    phi = phi / np.sqrt(float(problem.temperature))
    delta = np.exp(-0.5)

    def derivative(block):  # of log|I + block blockᵀ/δ| in log δ
        k = block @ block.T / delta
        return -np.trace(np.linalg.solve(np.eye(len(k)) + k, k))

    total = []
    for subset in itertools.combinations(range(N), size):
        part = phi[list(subset)]
        one = [part.reshape(size * C, -1)] if outputs == "all" else [part[:, c] for c in range(C)]
        total.append(N / size * sum(derivative(block) for block in one))
    assert abs(grads.mean() - np.mean(total)) < 4 * grads.std() / np.sqrt(draws)


@pytest.mark.parametrize("entry", frozen.LAPLACE_TORCH)
def test_laplace_torch_agrees(entry: tuple[str, str, float]):
    kind, structure, precision = entry
    w = {k: jnp.asarray(v) for k, v in frozen.network().items()}
    y = frozen.labels() if kind == "classification" else frozen.targets()
    answer = ev.log_evidence(
        lambda p, hyper, x: jnp.tanh(x @ p["W1"] + p["b1"]) @ p["W2"] + p["b2"],
        w,
        (frozen.inputs(), y),
        likelihood=ev.Categorical() if kind == "classification" else ev.Gaussian(frozen.SIGMA),
        prior=ev.GaussianPrior(precision),
        estimator=ev.FullData(
            {"full": Full(), "kron": ev.structures.KFAC(), "diag": ev.structures.Diagonal()}[structure]
        ),
    )
    np.testing.assert_allclose(answer.value, frozen.LAPLACE_TORCH[entry], rtol=1e-6)


def test_lanczos_is_near_the_truth_and_has_a_derivative():
    problem = case(8)
    estimator = ev.Lanczos(steps=20, samples=200)

    def value(log_precision):

        moved = eqx.tree_at(lambda p: p.prior, problem, ev.GaussianPrior(jnp.exp(log_precision)))
        return estimate(estimator, moved, jax.random.key(0)).upper

    at = float(np.log(0.5))
    got, grad = jax.jit(jax.value_and_grad(value))(jnp.asarray(at))
    np.testing.assert_allclose(got, dense(problem), rtol=0.05)
    step = 1e-4
    numeric = (value(jnp.asarray(at + step)) - value(jnp.asarray(at - step))) / (2 * step)
    np.testing.assert_allclose(grad, numeric, rtol=1e-5)


def test_the_choice_uses_past_draws_only():
    problem = case(9)
    choice = ev.Choice((ev.Chain(ev.designs.OneRow(4)), ev.FullData()), refresh=3)
    state = choice.init(problem, jax.random.key(0))
    step = eqx.filter_jit(choice)
    assert int(choice.chosen(state)) == 0
    values = []
    for i in range(6):
        sides, state = step(problem, jax.random.key(i), state)
        values.append(float(sides.upper))
    truth = dense(problem)
    assert int(choice.chosen(state)) == 1  # the exact one is below any bound on average
    np.testing.assert_allclose(values[1:], truth, rtol=1e-10)
    assert abs(values[0] - truth) > 1e-3 * truth
