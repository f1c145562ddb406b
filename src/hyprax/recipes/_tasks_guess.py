"""The settings of `hyprax tasks tune` for a table of tasks that comes without a file of settings."""

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from ..tasks._models import MODELS, RANGES
from ._columns import is_missing, target_kind
from ._errors import RecipeError
from ._tables import read_table
from ._tasks import DataTable, GuaranteeTable, ModelTable, Settings, ValidationTable

SAME_AS = {
    "ridge": "Ridge(alpha=hyper * n), n the rows of the task",
    "lasso": "Lasso(alpha=hyper)",
    "elastic_net": "ElasticNet(alpha=hyper + penalty2, l1_ratio=hyper / (hyper + penalty2))",
    "hinge": "LinearSVC(C=hyper, loss='hinge')",
    "logistic": "LogisticRegression(C=1 / (hyper * n), solver='liblinear'), n the rows of the task",
}
"""What the hyperparameter is in the words of scikit-learn."""
_PENALTY2 = 0.1
"""The squared penalty of an elastic net of which nothing is said."""


def settings_for(
    path: Path,
    *,
    task: str | None,
    target: str | None,
    model: str | None = None,
    low: float | None = None,
    high: float | None = None,
    folds: int = 5,
    order: str | None = None,
    weight: str | None = None,
    row_weight: str | None = None,
    width: float | None = None,
) -> Settings:
    """Columns recognised, categories as indicators, missing values filled by training rows, features standardised.

    **Raises:** `RecipeError`.
    """
    if not path.is_file():
        raise RecipeError("there is no such file", file=path)
    for name, value in (("task", task), ("target", target)):
        if value is None:
            raise RecipeError(f"must name a column of {path}", key=f"--{name}")
    table = read_table(path)
    header = table.header
    for name, value in (
        ("task", task),
        ("target", target),
        ("order", order),
        ("weight", weight),
        ("row-weight", row_weight),
    ):
        if value is not None and value not in header and (name, value) != ("weight", "rows"):
            raise RecipeError(f"must name a column, one of {', '.join(header[:20])}; got {value!r}", key=f"--{name}")
    texts = table.column(str(target))
    known = texts[~is_missing(texts)].tolist()
    usual, said = target_kind(known) if known else ("ridge", "nothing")
    if model is None and usual == "softmax":
        raise RecipeError(f"must hold numbers or two classes; got {said}", key="--target")
    kind = ("logistic" if usual == "logistic" else "ridge") if model is None else model.replace("-", "_")
    if kind not in MODELS:
        raise RecipeError(f"must be one of {', '.join(MODELS)}; got {model!r}", key="--model")
    # Strengths of an l1 penalty are in units of the targets.
    unit = _spread(known) if kind in ("lasso", "elastic_net") else 1.0
    try:
        return Settings(
            data=DataTable(
                path=path.name,
                task=str(task),
                target=str(target),
                columns="recognise",
                order=order,
                weight=weight,
                row_weight=row_weight,
            ),
            model=ModelTable.model_validate(
                {
                    "kind": kind,
                    "low": RANGES[kind][0] * unit if low is None else low,
                    "high": RANGES[kind][1] * unit if high is None else high,
                    "penalty2": _PENALTY2 if kind == "elastic_net" else None,
                }
            ),
            validation=ValidationTable(kind="k_fold" if order is None else "time", folds=folds),
            guarantee=None if width is None else GuaranteeTable(range=width),
        )
    except ValidationError as error:
        first: Any = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise RecipeError(message[:1].lower() + message[1:], key=f"--{key}" if key else "") from None


def _spread(texts: list[str]) -> float:
    """The deviation of targets, 1 where they are no numbers or all the same."""
    try:
        found = float(np.std([float(text.replace(",", ".")) for text in texts]))
    except ValueError:
        return 1.0
    return found if np.isfinite(found) and found > 0 else 1.0
