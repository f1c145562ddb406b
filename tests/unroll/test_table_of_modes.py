"""The table of the benchmark of training runs at its smallest: steps by hand are those of the library."""

import jax
import jax.numpy as jnp
import pytest
from benchmarks import unrolled_table

import hyprax as hx


def test_the_table_has_a_row_for_every_method(tmp_path, monkeypatch):
    monkeypatch.setattr(unrolled_table, "modes", lambda block: {"`StoreAll`": hx.unroll.StoreAll()})
    block = unrolled_table.Block("Lion", (64, 2, 10), "float64", 2, 4)
    made = unrolled_table.measure(block, 1, None)
    rows = {row["name"]: row for row in made["rows"]}
    assert rows["`StoreAll`"]["kind"] == "none"
    assert rows["`StoreAll`"]["error"] <= 1e-9
    assert rows["`StoreAll`"]["floor"] > 1
    text = unrolled_table.table({block: [made["rows"], made["rows"]]})
    assert len(text.splitlines()) == 5 + len(rows)
    page = tmp_path / "page.md"
    page.write_text("before {} old {} after".format(*unrolled_table.MARKS))
    unrolled_table.write_into(page, text)
    assert text in page.read_text()
    assert "old" not in page.read_text()
    assert page.read_text().endswith(" after")


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["MomentumSGD", "Adam", "AdamW", "Lion", "Muon", "optax.adam"])
def test_steps_by_hand_are_those_of_the_library(optimizer):
    block = unrolled_table.Block(optimizer, (64, 2, 10), "float64", 4, 4)
    rows = unrolled_table.measure(block, 1, None)["rows"]
    assert all(row["error"] <= 1e-9 for row in rows if row["error"] is not None and "Truncated" not in row["name"])


@pytest.mark.slow
@pytest.mark.parametrize("eps", [1e-8, 1e-4])
def test_weights_with_gradients_of_the_size_of_eps_are_resolved_by_adam_in_fixed_point(eps):
    """26,000 weights, some with gradients of 1e-8: with s in one word of 62 bits this was off by .6 %."""
    case = unrolled_table.Case(unrolled_table.Block("Adam", (64, 128, 128, 10), "float64", 50))
    hyper = jax.tree.map(jnp.asarray, case.hyper)
    found = {}
    for name, mode in (("kept", hx.unroll.StoreAll()), ("undone", hx.unroll.Reversible())):
        given = case.objective(mode)
        training = hx.Training(
            given.training.loss,
            given.training.init,
            lambda hyper: hx.unroll.Adam(hyper["rate"], hyper["momentum"], eps=eps),
            given.training.batches,
            50,
        )
        objective = hx.UnrolledObjective(training, given.outer.loss, case.held_out, mode=mode, key=jax.random.key(0))
        found[name] = objective.value_and_grad(hyper, objective.init(hyper))[0].grad
    assert unrolled_table.distance(found["undone"], unrolled_table.flat(found["kept"])) <= 1e-10
