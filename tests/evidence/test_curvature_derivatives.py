"""Derivatives of KFAC, EKFAC and the tangent bound in precisions, noise or temperature, and a hyperparameter inside.

The references are written in NumPy, from Jacobians or activations, and differentiated by central differences.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evidence_oracles import curvature, jacobian, softmax, square_root

from hyprax import evidence as ev
from hyprax.evidence._structures import Full
from hyprax.evidence._tangent import draw, guess
from thoroughness import slow

N, D, H, C = 9, 3, 4, 3
NAMES = ("b", "v", "w")
"""The tensors in the order of the leaves."""


def model(params, hyper, x):
    return jnp.tanh((x * hyper) @ params["w"] + params["b"]) @ params["v"]


class Case:
    """Random weights and data; `at` has log-precisions (3), the scales of the inputs (D), and log T or log noise."""

    def __init__(self, seed: int, kind: str):
        rng = np.random.default_rng(seed)
        self.kind = kind
        self.params = {"w": rng.normal(size=(D, H)), "b": rng.normal(size=H), "v": rng.normal(size=(H, C))}
        self.x = rng.normal(size=(N, D))
        self.y = rng.integers(0, C, N) if kind == "categorical" else rng.normal(size=(N, C))
        self.at = np.concatenate([rng.normal(size=3), np.exp(rng.normal(size=D) / 3), [rng.normal() / 3]])

    def problem(self, at) -> ev.LinearisedModel:
        return build(self.kind, jnp.asarray(at), self.arrays)

    @property
    def arrays(self):
        return jax.tree.map(jnp.asarray, (self.params, self.x, self.y))

    def logits(self, at) -> np.ndarray:
        p = self.params
        return np.tanh((self.x * at[3 : 3 + D]) @ p["w"] + p["b"]) @ p["v"]

    def curvature(self, at) -> np.ndarray:
        """Λ/T of every datum."""
        f = self.logits(at)
        if self.kind == "gaussian":
            return curvature("gaussian", f, np.exp(at[-1]))
        return curvature("categorical", f) / np.exp(at[-1])

    def rows(self, at, roots: np.ndarray) -> dict[str, np.ndarray]:
        """φ P0^-½ of each tensor, [rows, *shape], for the columns of `roots` [n, C, R] at the first n data."""
        j = np.asarray(_jacobian(self.params, at[3 : 3 + D], self.x))
        flat = np.einsum("ncp,ncr->nrp", j, roots).reshape(-1, j.shape[2])
        out, start = {}, 0
        for i, name in enumerate(NAMES):
            shape = self.params[name].shape
            part = flat[:, start : start + int(np.prod(shape))]
            out[name] = part.reshape(-1, *shape) / np.exp(at[i] / 2)
            start += int(np.prod(shape))
        return out


def build(kind: str, at, arrays) -> ev.LinearisedModel:
    """The problem, differentiable in `at`."""
    params, x, y = arrays
    prior = ev.GaussianPrior({name: jnp.exp(at[i]) for i, name in enumerate(NAMES)})
    last, hyper = jnp.exp(at[-1]), at[3 : 3 + D]
    if kind == "gaussian":
        return ev.LinearisedModel(model, ev.Gaussian(last), prior, params, hyper, x, y, jnp.ones(()))
    return ev.LinearisedModel(model, ev.Categorical(), prior, params, hyper, x, y, last)


@eqx.filter_jit
def value_and_grad(estimator, kind, at, arrays, key, state):
    """Compiled once for each estimator and kind."""

    def value(at):
        problem = build(kind, at, arrays)
        sides = estimator(problem, key) if state is None else estimator(problem, key, state)[0]
        return sides.upper

    return jax.value_and_grad(value)(at)


_init = eqx.filter_jit(lambda estimator, problem, key: estimator.init(problem, key))
_jacobian = jax.jit(lambda params, hyper, x: jacobian(model, params, hyper, x))


def differences(function, at: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """The derivative by central differences."""
    moves = np.eye(len(at)) * step
    return np.array([(function(at + m) - function(at - m)) / (2 * step) for m in moves])


def agree(ours, theirs, at: np.ndarray) -> None:
    """Value and derivative of `ours`, and those of `theirs`."""
    value, grad = ours(jnp.asarray(at))
    np.testing.assert_allclose(value, theirs(at), rtol=1e-9)
    want = differences(theirs, at)
    np.testing.assert_allclose(grad, want, rtol=1e-6, atol=1e-7 * np.abs(want).max())


KEY = jax.random.key(0)
KINDS = ("categorical", "gaussian")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_kfac(kind: str, seed: int):
    case = Case(seed, kind)

    def theirs(at: np.ndarray) -> float:
        p, a = case.params, case.x * at[3 : 3 + D]
        h = np.tanh(a @ p["w"] + p["b"])
        root = square_root(case.curvature(at))
        g = np.einsum("nhr,nh->nrh", p["v"] @ root, 1 - h**2).reshape(-1, H)
        heads = np.swapaxes(root, 1, 2).reshape(-1, C)
        factors = {"w": (a.T @ a / N, g.T @ g), "b": (np.ones((1, 1)), g.T @ g), "v": (h.T @ h / N, heads.T @ heads)}
        total = 0.0
        for i, name in enumerate(NAMES):
            d, e = (np.maximum(np.linalg.eigvalsh(m), 0) for m in factors[name])
            total += np.log1p(np.outer(d, e) / np.exp(at[i])).sum()
        return total

    estimator = ev.FullData(ev.structures.KFAC())
    agree(lambda at: value_and_grad(estimator, kind, at, case.arrays, KEY, None), theirs, case.at)


def test_kfac_of_a_convolution():
    """Inputs are patches and cotangents those of positions; also in a number that multiplies the image."""
    rng = np.random.default_rng(3)
    w, v = rng.normal(size=(2, 1, 2, 2)), rng.normal(size=(2, C))
    x, y = rng.normal(size=(N, 1, 4, 4)), rng.integers(0, C, N)

    def conv(params, hyper, image):
        z = jax.lax.conv_general_dilated((hyper * image)[None], params["w"], (1, 1), "VALID")[0]
        return jnp.tanh(z).sum((1, 2)) @ params["v"]

    def ours(at):
        prior = ev.GaussianPrior({"v": jnp.exp(at[0]), "w": jnp.exp(at[1])})
        params = {"v": jnp.asarray(v), "w": jnp.asarray(w)}
        problem = ev.LinearisedModel(
            conv, ev.Categorical(), prior, params, at[2], jnp.asarray(x), jnp.asarray(y), jnp.exp(at[3])
        )
        return ev.FullData(ev.structures.KFAC())(problem, KEY).upper

    def theirs(at: np.ndarray) -> float:
        places = [(i, j) for i in range(3) for j in range(3)]
        patches = np.stack([at[2] * x[:, 0, i : i + 2, j : j + 2].reshape(N, 4) for i, j in places], 1)
        h = np.tanh(patches @ w.reshape(2, 4).T)
        root = square_root(curvature("categorical", h.sum(1) @ v) / np.exp(at[3]))
        heads = np.swapaxes(root, 1, 2).reshape(-1, C)
        g = np.einsum("or,nso->nrso", np.eye(2), 1 - h**2)
        g = np.einsum("nqr,nqso->nrso", v @ root, g).reshape(-1, 2)
        a, total = h.sum(1), 0.0
        for left, right, log in (
            (a.T @ a / N, heads.T @ heads, at[0]),
            (patches.reshape(-1, 4).T @ patches.reshape(-1, 4) / (9 * N), g.T @ g, at[1]),
        ):
            d, e = np.maximum(np.linalg.eigvalsh(left), 0), np.maximum(np.linalg.eigvalsh(right), 0)
            total += np.log1p(np.outer(d, e) / np.exp(log)).sum()
        return total

    agree(jax.jit(jax.value_and_grad(ours)), theirs, np.array([0.3, -0.6, 1.2, 0.2]))


def as_matrix(rows: np.ndarray) -> np.ndarray:
    return rows if rows.ndim == 3 else rows[:, :, None]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_ekfac_at_the_basis_of_the_point(kind: str, seed: int):
    """Its derivative holds the bases: any are a bound, and so is the function that is differentiated."""
    case = Case(10 + seed, kind)

    def matrices(at: np.ndarray) -> dict[str, np.ndarray]:
        return {name: as_matrix(rows) for name, rows in case.rows(at, square_root(case.curvature(at))).items()}

    there = matrices(case.at)
    left = {name: np.linalg.eigh(np.einsum("nio,njo->ij", w, w))[1] for name, w in there.items()}
    right = {name: np.linalg.eigh(np.einsum("nio,nip->op", w, w))[1] for name, w in there.items()}

    def theirs(at: np.ndarray) -> float:
        moved = {name: left[name].T @ w @ right[name] for name, w in matrices(at).items()}
        return sum(np.log1p((w**2).sum(0)).sum() for w in moved.values())

    estimator = ev.FullData(ev.structures.EKFAC())
    agree(lambda at: value_and_grad(estimator, kind, at, case.arrays, KEY, None), theirs, case.at)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_the_tangent_at_the_state_of_past_draws(kind: str, seed: int):
    """In everything: what is differentiated is the value itself, s̃ in the units of the precision and temperature."""
    case = Case(20 + seed, kind)
    size = 5
    estimator = ev.AdaptiveTangent(size, decay=0.5)
    built = case.problem(case.at)
    state = _init(estimator, built, jax.random.key(seed))
    data, signs = (np.asarray(x) for x in draw(built, size, KEY))
    guesses = {
        name: np.asarray(guess(square, basis, left, right, 3.0 * size))
        for name, square, basis, (left, right) in zip(NAMES, state.squares, state.basis, state.factors, strict=True)
    }

    def theirs(at: np.ndarray) -> float:
        f = case.logits(at)[data]
        if kind == "gaussian":
            rows, temperature = signs[:, :, 0] / np.exp(at[-1]), 1.0
        else:
            p, temperature = softmax(f), np.exp(at[-1])
            half = np.sqrt(p) * signs[:, :, 0]
            rows = (half - p * half.sum(1, keepdims=True)) / np.sqrt(temperature)
        roots = np.zeros((N, C, 1))
        roots[data, :, 0] = rows * np.sqrt(N / size)
        total = 0.0
        for i, (name, w) in enumerate(case.rows(at, roots).items()):
            basis = state.basis[i]
            w = np.asarray(basis.left).T @ as_matrix(w)
            w = w if basis.right is None else w @ np.asarray(basis.right)
            old, fresh = guesses[name] / (temperature * np.exp(at[i])), (w**2).sum(0)
            total += np.sum(np.log1p(old) + (fresh - old) / (1 + old))
        return total

    agree(lambda at: value_and_grad(estimator, kind, at, case.arrays, KEY, state), theirs, case.at)


@pytest.mark.parametrize("estimator", [ev.Tangent(8), ev.Tangent(4, 7)], ids=["halves", "reference"])
@pytest.mark.parametrize("seed", range(3))
def test_the_tangent_of_one_draw_in_precisions_and_temperature(estimator: ev.Tangent, seed: int):
    """Basis and reference rows depend on neither, so central differences of the value are its derivative."""
    case = Case(30 + seed, "categorical")
    free = np.r_[0:3, -1]

    def ours(some):
        at = jnp.asarray(case.at).at[free].set(some)
        value, grad = value_and_grad(estimator, case.kind, at, case.arrays, jax.random.key(seed), None)
        return value, grad[free]

    agree(ours, lambda some: float(ours(some)[0]), case.at[free])


def test_the_tangent_with_a_precision_for_each_weight():
    case = Case(40, "gaussian")
    estimator = ev.AdaptiveTangent(6)
    plain = case.problem(case.at)

    def problem(logs):
        precision = {**plain.prior.precision, "w": jnp.exp(logs).reshape(D, H)}
        return eqx.tree_at(lambda p: p.prior, plain, ev.GaussianPrior(precision))

    logs = np.random.default_rng(41).normal(size=D * H)
    state = _init(estimator, problem(jnp.asarray(logs)), jax.random.key(1))
    ours = jax.jit(jax.value_and_grad(lambda logs: estimator(problem(logs), KEY, state)[0].upper))
    agree(ours, lambda logs: float(ours(logs)[0]), logs)


def test_where_the_data_determine_the_weights_the_derivative_in_the_precision_has_no_noise():
    """At a tiny precision all directions that rows reach count in full: d/d log δ = -1 each."""
    case = Case(50, "gaussian")
    estimator = ev.AdaptiveTangent(6, decay=0.95)
    state = _init(estimator, case.problem(case.at), KEY)

    def value(log, key, state):
        at = jnp.asarray(case.at).at[:3].set(log)
        sides, state = estimator(case.problem(at), key, state)
        return sides.upper, state

    step = jax.jit(jax.value_and_grad(value, has_aux=True))
    values, grads = [], []
    for i in range(60):
        (upper, state), grad = step(jnp.asarray(-16.0), jax.random.key(i), state)
        values.append(float(upper))
        grads.append(float(grad))
    weights = D * H + H + H * C
    assert np.std(values[30:]) > 1
    np.testing.assert_allclose(grads[30:], -weights, rtol=1e-4)


def test_online_kfac_is_kfac_at_its_weights():
    case = Case(60, "categorical")
    estimator = ev.OnlineKFAC(4)  # chunks of 4, 4 and 1
    state = estimator.init(case.problem(case.at), KEY)
    at = jnp.asarray(case.at).at[:3].add(0.5)
    value, grad = value_and_grad(ev.FullData(ev.structures.KFAC()), case.kind, at, case.arrays, KEY, None)
    got, slope = value_and_grad(estimator, case.kind, at, case.arrays, KEY, state)
    np.testing.assert_allclose(got, value, rtol=1e-10)
    np.testing.assert_allclose(slope[:3], grad[:3], rtol=1e-10)
    assert estimator.kind == "estimated"


@pytest.mark.parametrize(
    "structure",
    [slow(ev.structures.KFAC()), slow(ev.structures.EKFAC()), slow(ev.structures.Diagonal()), Full()],
    ids=lambda s: type(s).__name__,
)
def test_chunks_unrolled_or_in_a_loop_change_nothing(structure, monkeypatch):
    """Nine data one by one, or by two with one left over, against all at once."""
    from hyprax.evidence import _structures

    case = Case(70, "categorical")
    estimator = ev.FullData(structure)
    row = 8 * sum(w.size for w in case.params.values()) * (C - 1)

    def at(chunk: int, unrolled: int):
        monkeypatch.setattr(_structures, "CHUNK_BYTES", chunk * row)
        monkeypatch.setattr(_structures, "LARGEST_UNROLLED", unrolled)

        def value(at):  # a function of its own, traced anew
            return estimator(build(case.kind, at, case.arrays), KEY).upper

        return jax.jit(jax.value_and_grad(value))(jnp.asarray(case.at))

    value, grad = at(N, 16)
    for chunk, unrolled in ((1, 16), (1, 2), (2, 2)):
        got, slope = at(chunk, unrolled)
        np.testing.assert_allclose(got, value, rtol=1e-10)
        np.testing.assert_allclose(slope, grad, rtol=1e-8, atol=1e-10)
