"""Plans as text, what they choose, and the errors that models without a kernel meet."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from architectures import ARCHITECTURES
from jax import Array

from hyprax import evidence as ev
from hyprax.evidence._kernel import kernel

W = jnp.ones((4, 3))


def line(table: str, tensor: str) -> str:
    (found,) = [row for row in table.splitlines() if row.startswith(tensor)]
    return found


def plan_of(name: str, **options: Any) -> str:
    model = ARCHITECTURES[name](np.random.default_rng(0), 2)
    return ev.kernel_plan(model.apply, model.params, jax.tree.map(lambda x: x[0], model.inputs), model.hyper, **options)


def test_a_plan_names_sizes_contraction_and_reason() -> None:
    table = plan_of("mlp")
    assert table.startswith("79 parameters, 100 examples, 3 rows each, 3 outputs")
    assert "pairs of factors" in line(table, "[0]['w']")
    assert line(table, "[0]['w']").split()[1:7] == ["5x6", "dot_general", "1", "1", "5", "6"]
    assert "used by add" in line(table, "[0]['b']")
    assert "one variance for each parameter" in line(plan_of("mlp", per_parameter=True), "[0]['w']")


def test_a_plan_names_what_cannot_be_a_product_of_matrices() -> None:
    assert "used by custom_vjp_call" in line(plan_of("custom_rule"), "['w']")
    assert "do not depend on it" in line(plan_of("custom_rule"), "['unused']")
    assert "used in two layouts" in line(plan_of("tied"), "['v']")
    assert "2 dot_general" in line(plan_of("tied"), "['w']")
    assert "used by the first state of a scan" in line(plan_of("rnn"), "['h']")
    assert line(plan_of("scanned_layers"), "['w']").split()[2:6] == ["dot_general", "3", "5", "4"]
    assert line(plan_of("tied"), "['table']").split()[2:9] == [
        "dynamic_slice,",
        "gather",
        "1",
        "4",
        "6",
        "4",
        "gradients",
    ]


def test_large_tables_are_looked_up_by_pairs() -> None:
    def apply(table: Array, hyper: None, x: Array) -> Array:
        return jnp.take(table, x, axis=0).sum(0)

    table = ev.kernel_plan(apply, jax.ShapeDtypeStruct((5_000, 16), jnp.float32), jnp.zeros(12, int))
    assert "pairs of factors" in table


def refuses(match: str, apply: Any, params: Any, inputs: Any, cotangents: Array, variances: Any = None) -> None:
    variances = jax.tree.map(lambda _: jnp.asarray(1.0), params) if variances is None else variances
    with pytest.raises(ValueError, match=match):
        kernel(apply, params, None, inputs, cotangents, variances)


@pytest.mark.usefixtures("unchecked")
def test_what_has_no_kernel_is_refused() -> None:
    x, c = jnp.ones((5, 4)), jnp.ones((5, 1, 3))

    def linear(w: Array, _: Any, x: Array) -> Array:
        return x @ w

    refuses(r"one entry for each of the 3 outputs of apply, got 2", linear, W, x, jnp.ones((5, 1, 2)))
    refuses(r"the 5 examples of cotangents", linear, W, x[:4], c)
    refuses(r"the structure of params", linear, W, x, c, {"w": jnp.asarray(1.0)})
    refuses(r"a scalar or like its leaf, got \(3,\) for \(4, 3\)", linear, W, x, c, jnp.ones(3))
    refuses(r"at least one example and one row", linear, W, x[:0], c[:0])
    refuses(r"hold no array", linear, (), x, c)
    refuses(
        r"floating-point arrays only, but \['n'\] is int",
        lambda p, _, x: x @ p["w"],
        {"w": W, "n": jnp.ones(1, int)},
        x,
        c,
    )
    refuses(r"outputs \[C\] for one example", lambda w, _, x: x[None] @ w, W, x, c)
    refuses(r"depend on no parameter", lambda w, _, x: x[:3], W, x, c)


@pytest.mark.usefixtures("unchecked")
def test_batch_statistics_are_refused_with_the_way_out() -> None:
    x, c = jnp.ones((5, 4)), jnp.ones((5, 1, 3))
    refuses(r"batch_stats.*GroupNorm", lambda p, _, x: x @ p["w"], {"w": W, "batch_stats": {"mean": jnp.ones(3)}}, x, c)
    refuses(r"reduces over the batch.*GroupNorm", lambda w, _, x: jax.lax.pmean(x @ w, "batch"), W, x, c)
    refuses(r"one array of outputs.*GroupNorm", lambda w, _, x: (x @ w, x.mean()), W, x, c)
    norm, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(3, axis_name="batch", mode="ema")
    refuses(r"reduces over the batch.*GroupNorm", lambda w, _, x: norm(x @ w, state)[0], W, x, c)
