"""Recipes: a TOML file names data, model, what to tune and how; from it a job, and its outcome."""

from ._build import prepare as prepare
from ._data import Splits as Splits
from ._errors import RecipeError as RecipeError
from ._job import Job as Job
from ._judgement import Judgement as Judgement
from ._outcome import Outcome as Outcome, carry_out as carry_out
from ._saved import Model as Model, load as load
from ._schema import Recipe as Recipe
