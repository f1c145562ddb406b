"""The tables of a recipe that say what the data are."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Table(BaseModel):
    """A table of a recipe: every key known, of its type, and no number infinite."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


Count = Annotated[int, Field(ge=1, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class _Data(Table):
    scale: Literal["none", "standard", "minmax", "unit"] = Field(
        default="none",
        description="by the training part: standard, each column to mean 0 and deviation 1; minmax, each column to "
        "[0, 1]; unit, all divided by the largest entry",
    )
    intercept: bool | None = Field(
        default=None,
        description="add a column of ones, which linear models do not penalise; left out, for these, but for images",
    )
    rows: Count | None = Field(default=None, description="use so many rows, drawn at random")
    corrupt: float = Field(
        default=0.0, ge=0, lt=1, description="give so large a part of the training rows a wrong class, drawn at random"
    )
    scale_targets: bool = Field(
        default=False, description="of numbers: to mean 0 and deviation 1, by the training part"
    )
    expand: Literal["none", "squares", "products"] = Field(
        default="none",
        description="add the squares of the scaled columns, or these and their pairwise products, scaled alike",
    )
    positive: str | None = Field(
        default=None,
        description="of two classes that which weights, probabilities and curves speak for; left out, the last by name",
    )
    class_weight: Literal["balanced"] | dict[str, Annotated[float, Field(gt=0)]] | None = Field(
        default=None,
        description="of softmax and logistic: the weight of the rows of each class, by name, 1 where none is given, "
        "or balanced, one over how often it occurs",
    )


class SklearnData(_Data):
    """A set that ships with scikit-learn."""

    source: Literal["sklearn"]
    name: Literal["breast_cancer", "diabetes", "digits", "iris", "wine"]


class CsvData(_Data):
    """A table with a header line: numbers, categories, dates; CSV of any dialect and encoding, gzipped, or Parquet."""

    source: Literal["csv"]
    path: str
    target: str = Field(description="the column to predict")
    features: Annotated[list[str], Field(min_length=1)] | None = Field(
        default=None, description="the columns to predict from; default all others"
    )
    groups: str | None = Field(default=None, description="the column that says which group a row belongs to")
    segments: str | None = Field(
        default=None, description="the column by whose values the report has test losses apart; left out, the groups"
    )
    exposure: str | None = Field(
        default=None, description="of poisson, the column of how long or how much each count was counted over"
    )
    drop: list[str] | None = Field(default=None, description="columns to leave out")
    kinds: dict[str, Literal["number", "category", "date", "drop"]] | None = Field(
        default=None, description="what columns are; left out, what they look like"
    )
    missing: Literal["impute", "refuse"] = Field(
        default="impute", description="impute: the mean of the training part, and an indicator"
    )
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = Field(
        default=None, description="between columns; left out, what cuts the first lines evenly"
    )
    decimal: Literal[".", ","] | None = Field(default=None, description="of numbers; left out, as they are written")
    encoding: str | None = Field(default=None, description="left out: UTF-8, else Windows-1252")
    assume: bool = Field(default=False, description="take guesses about the file as they are, the doubtful ones too")


class NpzData(_Data):
    """NumPy arrays; nothing is unpickled."""

    source: Literal["npz"]
    path: str
    inputs: str = "X"
    targets: str = "y"
    groups: str | None = Field(default=None, description="the array that says which group a row belongs to")
    segments: str | None = Field(
        default=None, description="the array by whose values the report has test losses apart; left out, the groups"
    )
    exposure: str | None = Field(
        default=None, description="of poisson, the array of how long or how much each count was counted over"
    )


class IdxData(_Data):
    """Two IDX files, plain or .gz, as of MNIST."""

    source: Literal["idx"]
    inputs: str
    targets: str


class ImagesData(_Data):
    """A folder that holds a folder of images for each class; colours become grey."""

    source: Literal["images"]
    path: str
    size: Annotated[list[Count], Field(min_length=2, max_length=2)] | None = Field(
        default=None, description="[height, width] to which all are scaled; left out, they must be of one size"
    )


class OpenmlData(_Data):
    """A set fetched from OpenML by name."""

    source: Literal["openml"]
    name: str
    version: int | Literal["active"] = "active"


class NamedData(_Data):
    """MNIST or Fashion-MNIST: from the folder HYPRAX_DATA where it is set, otherwise from OpenML."""

    source: Literal["named"]
    name: Literal["fashion-mnist", "mnist"]


DataSource = Annotated[
    SklearnData | CsvData | NpzData | IdxData | ImagesData | OpenmlData | NamedData, Field(discriminator="source")
]


class Split(Table):
    """Fractions of the rows: drawn at random, classes in proportion; or of whole groups; or in the order of time."""

    train: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="left out, what the others leave"
    )
    validation: float = Field(default=0.25, ge=0, lt=1, description="0 with the evidence alone")
    test: float = Field(default=0.25, gt=0, lt=1)
    criterion: Literal["auto", "folds", "hold-out"] = Field(
        default="auto",
        description="what hyperparameters of linear models are tuned for: the loss on the validation part, or on folds "
        "of the training and validation rows together",
    )
    folds: Annotated[int, Field(ge=2, le=1000)] = 5
    by: Literal["rows", "groups", "time"] = Field(
        default="rows",
        description="what is kept together: nothing; the rows of each group of data.groups; in time, rows stand in its "
        "order, the last are the test part, and every fold judges rows that come after those it is fitted on",
    )
    seed: Seed = 0

    @property
    def fractions(self) -> dict[str, float]:
        """Of the three parts, by name."""
        train = 1 - self.validation - self.test if self.train is None else self.train
        return {"train": train, "validation": self.validation, "test": self.test}

    @model_validator(mode="after")
    def _at_most_everything(self) -> "Split":
        total = (self.train or 0.0) + self.validation + self.test
        if total > 1 + 1e-9 or (self.train is None and total > 1 - 1e-9):
            raise ValueError(f"must be fractions with a sum of at most 1; got {total:g}")
        return self
