"""Certificates: kinds, what they print, behaviour under transformations, errors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hyprax as hx


def bound(kind: Any = "certified") -> hx.Certificate:
    return hx.Certificate(
        jnp.asarray(0.5), kind, "‖h - ∇F‖₂", "some theorem", {"inner": jnp.asarray(0.3), "adjoint": jnp.asarray(0.2)}
    )


@pytest.mark.parametrize("kind", ["certified", "estimated"])
def test_an_error_bound_says_what_it_bounds_and_with_what_right(kind):
    certificate = bound(kind=kind)
    assert isinstance(certificate, hx.core.AbstractCertificate)
    assert certificate.kind == kind
    assert repr(certificate) == f"<{kind}: ‖h - ∇F‖₂ <= 0.5 (some theorem)>"
    assert set(certificate.terms) == {"inner", "adjoint"}
    assert hx.Certificate(jnp.asarray(1.0), kind, "a", "b").terms == {}


@pytest.mark.parametrize("kind", ["none", "proved", "Certified", ""])
@pytest.mark.usefixtures("unchecked")
def test_other_kinds_of_an_error_bound_are_refused(kind):
    with pytest.raises(ValueError, match="must be 'certified' or 'estimated'"):
        bound(kind=kind)


def test_without_a_certificate_the_bound_is_infinite():
    certificate = hx.NoCertificate("the loss is not known to be convex")
    assert isinstance(certificate, hx.core.AbstractCertificate)
    assert certificate.kind == "none"
    assert certificate.quantity == "nothing"
    assert certificate.bound == np.inf
    assert not certificate.bound.weak_type
    assert certificate.bound.dtype == np.float64
    assert hx.NoCertificate("no constants", jnp.float32).bound.dtype == np.float32
    assert repr(certificate) == "<none: the loss is not known to be convex>"


def test_an_abstract_certificate_cannot_be_made():
    abstract: Any = hx.core.AbstractCertificate
    with pytest.raises(TypeError, match="abstract"):
        abstract()


def test_certificates_go_through_transformations():
    jitted = jax.jit(lambda one: jax.tree.map(lambda x: 2 * x, one))(bound())
    assert (jitted.kind, jitted.quantity, jitted.method) == ("certified", "‖h - ∇F‖₂", "some theorem")
    np.testing.assert_allclose([jitted.bound, jitted.terms["inner"]], [1.0, 0.6])

    batched = jax.vmap(lambda x: hx.Certificate(x, "estimated", "a", "b"))(jnp.asarray([1.0, 2.0, 3.0]))
    assert batched.bound.shape == (3,)
    assert repr(batched) == "<estimated: a <= 1 .. 3 over (3,) (b)>"
    assert repr(jax.tree.map(lambda x: x[:0], batched)) == "<estimated: a <= empty (b)>"

    nothing = jax.jit(lambda: hx.NoCertificate("no constants"))()
    assert (nothing.kind, nothing.reason) == ("none", "no constants")
    assert nothing.bound == np.inf


def test_kinds_are_part_of_the_structure_so_that_no_branch_can_mix_them():
    assert jax.tree.structure(bound(kind="certified")) != jax.tree.structure(bound(kind="estimated"))


def test_repr_under_a_transformation_shows_the_abstract_value():
    seen = []
    jax.jit(lambda x: (seen.append(repr(hx.Certificate(x, "certified", "a", "b"))), x)[1])(jnp.ones(2))
    assert seen == ["<certified: a <= float64[2] (b)>"]
