"""What a notebook shows: whole, self-contained, escaped, and in the words of the answers themselves."""

import html
from html.parser import HTMLParser

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hyprax as hx
from hyprax._html import curve, table
from hyprax.runs import read
from hyprax.search import Gain, Honest, Improvement
from hyprax.tasks import complexity, gap, tasks_needed

START = {"x": jnp.asarray([3.0, -2.0]), "p": hx.Positive(jnp.asarray(0.5))}
VOID = {"br", "meta"}


def bowl(hyper):
    return jnp.sum((hyper["x"] - 1.0) ** 2) + hyper["p"]


class Whole(HTMLParser):
    """Every tag is closed in its order; the tags, the attributes and the text are kept."""

    def __init__(self, source):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.text = [], set(), [], ""
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "<b>run"
    search = hx.search.Optax(optax.adam(0.1))
    return hx.tune(bowl, START, search=search, steps=4, run=hx.Run(folder), progress=False), folder


def shown(tuned):
    found, folder = tuned
    answer = found.hypergradient
    assert answer is not None
    certificate = hx.Certificate(jnp.asarray(1e-3), "certified", "‖grad‖ & <more>", "a method", {"a": jnp.asarray(1.0)})
    noise = hx.Noise(jnp.asarray(0.5), 9, "rows")
    return [found, answer, answer.certificate, answer.noise, certificate, noise, read(folder)]


def test_cards_are_whole_and_fetch_and_run_nothing(tuned):
    for thing in shown(tuned):
        page = Whole(thing._repr_html_())
        assert page.tags <= {"div", "strong", "span", "table", "tr", "td", "th", "p", "code", "details", "summary"} | {
            "figure", "svg", "polyline", "figcaption",
        }  # fmt: skip
        assert not [name for name, value in page.attributes if name.startswith("on") or name in ("src", "href")]
        assert "url(" not in str(page.attributes)


def test_cards_say_what_the_answers_say(tuned):
    found, answer, none, noise, certificate, spread, record = (Whole(x._repr_html_()).text for x in shown(tuned))
    real = tuned[0]
    assert real.hypergradient is not None
    for text in (found, record):
        assert real.message.replace("`", "") in text
        assert f"{real.best_value:.6g}" in text
    for text in (found, answer, record):
        assert real.hypergradient.certificate.meaning() in text
        assert real.hypergradient.noise.meaning() in text
    assert real.hypergradient.certificate.meaning() in none
    assert real.hypergradient.noise.meaning() in noise
    assert "‖grad‖ & <more> ≤ 0.001" in certificate
    assert "standard error 0.5 over rows" in spread
    assert "<b>run" in record


def test_cards_of_gains_say_what_is_established():
    lower = Gain(0.3, 0.1, 4.0, "<b>tuned", "the default", 90)
    nothing = Honest(Gain(0.1, 0.2, 4.0, "this", "that", 90), 1.25, 1.35, np.array([0.3, -0.1]), np.array([0.0, 0.02]))
    proved = Improvement(0.02, 0.05, "betting", 0.1, 400, "rows", False)
    for thing, gain in ((lower, lower), (nothing, nothing.gain), (proved, proved)):
        page = Whole(thing._repr_html_())
        assert gain.meaning() in page.text
        assert ("not established" in page.text) != gain.established
    assert all(number in Whole(nothing._repr_html_()).text for number in ("1.25", "1.35", "0.3  -0.1", "0  0.02"))


def test_cards_of_guarantees_say_what_they_rest_on_and_what_was_tried():
    structure = complexity.Intervals(1)
    found, needed = gap(structure, 500, 0.05), tasks_needed(structure, 0.1, 0.05)
    for guarantee, number in ((found, f"{found.value:.4g}"), (needed, str(needed.n))):
        text = Whole(guarantee._repr_html_()).text
        assert number in text
        assert guarantee.name in text
        assert all(f"Assumed: {words}." in text for words in guarantee.assumptions)
        assert all(name in text for name in guarantee.candidates)


@pytest.mark.parametrize("words", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a\x1b[31mb", "&lt;"])
def test_texts_are_escaped(words):
    cells = table([(words, words)])
    assert Whole(cells).tags == {"table", "tr", "td"}
    assert "\x1b" not in cells
    assert Whole(curve([1.0, 2.0], words)).tags == {"figure", "svg", "polyline", "figcaption"}


def test_long_tables_are_cut_and_curves_survive_what_is_not_finite():
    assert "and 88 more" in table([(i, i) for i in range(100)])
    assert curve([np.nan, 1.0], "value") == ""
    assert "nan" not in curve([np.nan, 1.0, np.inf, 2.0], "value")
    assert "nan" not in curve([1.0, 1.0], "value")


def test_under_a_transformation_there_is_a_text(tuned):
    seen = []

    @jax.jit
    def traced(x):
        answer, _ = hx.hypergradient(lambda h: jnp.sum(h["x"] ** 2), {"x": x}, throw=False)
        seen.append(answer._repr_html_())
        return answer.value

    traced(jnp.ones(2))
    assert seen[0].startswith("<pre>")
    assert "Hypergradient" in html.unescape(seen[0])


def test_answers_under_vmap_are_shown_by_their_ranges():
    answers = jax.vmap(lambda x: hx.hypergradient(lambda h: jnp.sum(h["x"] ** 2), {"x": x}, throw=False)[0])(jnp.eye(3))
    assert "over (3,)" in Whole(answers._repr_html_()).text
