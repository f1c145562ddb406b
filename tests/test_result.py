"""Results: the members are messages, and the numbers stand beside them."""

import jax
import jax.numpy as jnp
import pytest

import hyprax as hx
from hyprax._result import describe, explain, message_of

WAYS_OUT = {
    "inner_not_converged": "Raise `max_steps` of the inner solver",
    "adjoint_not_converged": "Raise `max_steps` of the adjoint solver",
    "diverged": "lower the learning rate",
    "indefinite": "Add an l2 penalty",
    "strong_convexity_disproved": "Lower mu",
    "unpenalised": "Give every weight a strength above zero",
}


def test_success_has_nothing_to_say():
    assert hx.RESULTS[hx.RESULTS.successful] == ""
    assert explain(hx.RESULTS.successful, {"steps": jnp.asarray(3)}) == ""


def member(name):
    """Of the core, or of the implicit engine."""
    return getattr(hx.RESULTS if name in hx.RESULTS._name_to_item else hx.implicit.RESULTS, name)


def test_messages_are_sentences_and_all_different():
    texts = {message_of(member(name)) for name in WAYS_OUT}
    assert len(texts) == len(WAYS_OUT)
    assert all(text.endswith(".") and text[0].isupper() for text in texts)


@pytest.mark.parametrize(("name", "way_out"), WAYS_OUT.items())
def test_a_failure_names_the_way_out_and_the_numbers(name, way_out):
    stats = {"inner_steps": jnp.asarray(100), "gradient_norm": jnp.asarray(0.0312345), "history": jnp.ones(3)}
    text = explain(member(name), stats)
    assert way_out in text
    assert text.endswith("[inner_steps = 100, gradient_norm = 0.03123]")


def test_describe_keeps_the_order_and_leaves_out_what_is_no_number_yet():
    assert describe({"b": 1.5, "a": jnp.asarray([2.0]), "empty": jnp.zeros(0)}) == "b = 1.5, a = 2"
    assert describe({"large": 123456789, "nan": float("nan")}) == "large = 1.235e+08, nan = nan"
    seen = []
    jax.jit(lambda x: (seen.append(describe({"traced": x, "known": 2})), x)[1])(1.0)
    assert seen == ["known = 2"]


def test_results_can_be_chosen_inside_a_transformation():
    results = hx.implicit.RESULTS

    @jax.jit
    def judge(residual):
        return results.where(residual <= 1e-3, results.successful, results.adjoint_not_converged)

    assert judge(1e-4) == results.successful
    assert judge(1e-2) == results.adjoint_not_converged
    assert "adjoint system" in explain(judge(1e-2), {})
