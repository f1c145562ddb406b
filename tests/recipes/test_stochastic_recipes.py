"""Recipes of stochastic methods: run, judged at exact optima, and refused with what asks for accuracies."""

import numpy as np
import pytest

import hyprax as hx
from hyprax.implicit._single_loop import AbstractSingleLoop
from hyprax.recipes import RecipeError, carry_out, prepare

RECIPE = """
[data]
source = "sklearn"
name = "breast_cancer"
scale = "standard"
[model]
kind = "logistic"
[hyper.penalty]
shape = "feature"
start = 0.3
[objective]
method = "{method}"
batch_size = 32
[search]
steps = 150
learning_rate = 0.03
[baseline]
lo = 1e-3
hi = 1.0
points = 4
"""


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("soba", hx.implicit.SOBA),
        *(pytest.param(*c, marks=pytest.mark.slow) for c in (("saba", hx.implicit.SABA), ("amigo", hx.implicit.AmIGO))),
    ],
)
def test_a_stochastic_method_from_a_recipe(tmp_path, method, kind):
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(method=method))
    job = prepare(path)
    assert isinstance(job.objective, kind)
    assert isinstance(job.objective, AbstractSingleLoop)
    outcome = carry_out(job, None, progress=False)
    assert len(outcome.tuned.history) == 150
    baseline, tuned = outcome.contestants
    assert np.isnan(tuned.relative_bound)
    assert np.isfinite(baseline.validation_loss)
    exact = job.objective.full_batch()
    values = [
        float(exact.value(hyper, exact.init(hyper))[0].value) for hyper in (job.start_at(0.3), outcome.tuned.last)
    ]
    assert values[1] < values[0]
    np.testing.assert_allclose(tuned.validation_loss, values[1], rtol=1e-6)
    assert 0.9 < tuned.test_score <= 1


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("batch_size = 32", "batch_size = 500", "objective.batch_size must be at most"),
        ("batch_size = 32", 'certificate = "none"', 'objective.certificate must be left out for method = "saba"'),
        ('method = "saba"', 'method = "implicit"', 'objective.batch_size must be left out for method = "implicit"'),
        ("[baseline]", "[stop]\npatience = 5\n[baseline]", "stop.patience must be left out"),
        ("learning_rate = 0.03", 'optimizer = "maid"', 'which has no accuracy to choose; got "maid"'),
    ],
)
def test_what_a_stochastic_method_cannot_take(tmp_path, old, new, words):
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(method="saba").replace(old, new))
    with pytest.raises(RecipeError) as error:
        prepare(path)
    assert words in str(error.value)
