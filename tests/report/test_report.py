"""Reports of runs in every state."""

import re
import xml.dom.minidom

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hyprax as hx
from hyprax import report


def objective() -> hx.ImplicitObjective:
    def inner(w, hyper, data):
        return 0.5 * jnp.sum((w - 1) ** 2) + 0.5 * jnp.sum(hyper["scale"] * w**2)

    def outer(w, hyper, data):
        return jnp.sum((w - 0.5) ** 2)

    return hx.ImplicitObjective(hx.Optimum(inner, jnp.zeros(16)), outer)


LEAVES = {
    "scalar": hx.Positive(0.3),
    "vector": hx.Positive(np.full(16, 0.3)),
}


@pytest.mark.parametrize("leaf", LEAVES.values(), ids=LEAVES.keys())
def test_the_same_run_gives_the_same_page(tmp_path, leaf):
    search = hx.search.Optax(optax.adam(0.1))
    hx.tune(objective(), {"scale": leaf}, search=search, steps=3, run=hx.Run(tmp_path / "run"))
    page = report.write(tmp_path / "run", tmp_path / "page.html").read_text()
    assert page == report.write(tmp_path / "run", tmp_path / "page.html").read_text()
    assert page.count("<svg") == 3 + (leaf.raw.size > 1)
    assert "a good guess at the error" in page
    assert "http" not in page.replace("http-equiv", "")


def test_a_run_without_steps_has_a_page(tmp_path):
    run = hx.Run(tmp_path / "run", config={"<b>": "<script>"})
    start = objective(), {"scale": hx.Positive(np.full((4, 4), 0.3))}

    def stop(step):
        raise KeyboardInterrupt

    class Failing(hx.search.Optax):
        def step(self, objective, hyper, search_state, objective_state):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hx.tune(*start, search=Failing(optax.sgd(0.1)), steps=3, run=run)
    page = report.write(tmp_path / "run").read_text()
    assert "No step has been recorded" in page
    assert "not finished" in page
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_names_between_backticks_are_code_and_nothing_in_a_message_is_markup(tmp_path):
    run = hx.Run(tmp_path / "run")
    hx.tune(objective(), {"scale": hx.Positive(0.3)}, search=hx.search.Optax(optax.sgd(0.1)), steps=1, run=run)
    said = {"message": "Use `hx.honest` & `<b>`.", "gain": "Not `proved`.", "warnings": ["A `grid`."]}
    run.write_summary(said | {"tables": [{"title": "t", "rows": [{"a": "1"}]}]})
    page = report.write(tmp_path / "run").read_text()
    assert "Use <code>hx.honest</code> &amp; <code>&lt;b&gt;</code>." in page
    assert "Not <code>proved</code>." in page
    assert "A <code>grid</code>." in page
    assert "`" not in page


def test_images_heat_maps_and_lines(tmp_path):
    rng = np.random.default_rng(0)
    for shape, image in [((16, 3), (4, 4)), ((6, 3), None), ((5,), None), ((16,), (4, 4))]:
        start, best = np.full(shape, 0.1), np.exp(rng.normal(size=shape))
        from hyprax.report import _figures

        svg = _figures.hyperparameter("penalty", start, best, image)
        assert svg.lstrip().startswith("<?xml")
        assert ("<image" in svg) == (len(shape) == 2 or image is not None)


def test_names_are_no_mathematics_and_colours_are_the_page_s(tmp_path):
    name = "a$_{\\frac{<b>\x1b[2J"
    hyper = {name: hx.Positive(np.full(3, 0.3))}
    hx.tune(lambda h: jnp.sum(h[name] ** 2), hyper, steps=2, run=hx.Run(tmp_path / "run"), progress=False)
    page = report.write(tmp_path / "run").read_text()
    drawings = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(drawings) == 4
    for drawing in drawings:
        xml.dom.minidom.parseString(drawing)
        assert "currentColor" in drawing
        assert "#000000" not in drawing
    assert "<b>" not in page
    assert "\x1b" not in "".join(drawings)
    names = [found for drawing in drawings for found in re.findall(r'\bid="([^"]*)"', drawing)]
    assert len(names) == len(set(names))
