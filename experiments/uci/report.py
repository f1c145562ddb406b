"""The tables: ours, and published figures beside them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from experiments._common import machine

from .data import HIDDEN

Row = dict[str, Any]

PUBLISHED = {
    "yacht": ("-1.63 / 1.02", "-1.55 / 1.11"),
    "boston": ("-2.57 / 3.01", "-2.46 / 2.97"),
    "energy": ("-2.04 / 1.80", "-1.99 / 1.66"),
    "concrete": ("-3.16 / 5.67", "-3.04 / 5.23"),
    "wine_red": ("-0.97 / 0.64", "-0.93 / 0.62"),
    "power": ("-2.84 / 4.12", "-2.80 / 4.02"),
}
"""Test log-likelihood and RMSE of probabilistic backpropagation and of dropout: Table 1 of Gal and Ghahramani 2016."""


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
    """In the units of the targets: densities change by the logarithm of the scale."""
    values, scales = np.array([row[key] for row in rows]), np.array([row["scale"] for row in rows])
    return values - np.log(scales) if key.startswith("log") else values * scales


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
        base = by_method[name, "evidence"]
        both = [number for number in by_split if number in base]
        cells = [
            shown(column([by_split[k] for k in both], key) - column([base[k] for k in both], key))
            for key in ("log_likelihood", "error")
        ]
        lines.append(f"| {name} | {method} | {len(both)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def published(rows: Sequence[Row]) -> str:
    names = list(dict.fromkeys(name for name, _ in groups(rows)))
    return "\n".join(f"| {name} | " + " | ".join(PUBLISHED[name]) + " |" for name in names)


def moved(rows: Sequence[Row]) -> str:
    """What one step of the scales does to a fit."""
    (one,) = [row for row in rows if "moved_error" in row]
    before, after = (one[key] * one["scale"] for key in ("training_error", "moved_error"))
    return f"from {before:.2f} to {after:.2f}"


def write(here: Path, rows: Sequence[Row], settings: dict[str, Any], options: str) -> None:
    step = moved(rows)
    rows = [row for row in rows if "moved_error" not in row]
    text = TEXT.format(
        moved=step,
        options=options,
        machine=machine(),
        hidden=HIDDEN,
        outcomes=outcomes(rows),
        pairs=pairs(rows),
        published=published(rows),
        minutes=sum(row["seconds"] for row in rows) / 60,
        **settings,
    )
    (here / "RESULTS.md").write_text(text)


TEXT = """# Regression without a validation set

    python -m experiments.uci{options}

Measured on a {machine}, one thread, the machine shared with other work; {minutes:.0f} minutes of processor time. The
first splits of the published 20, as many as the table says. One hidden layer of {hidden} tanh units, {steps} steps of
Adam on batches of at most {batch}, one step of the hyperparameters for each {every} of these. *evidence*: the noise and
a prior precision for each tensor by the chain bound of {rows} rows on the training data, no data held out; predictions
and test log-likelihood from the linearised Laplace posterior of all training data. *precision per input*: one for the
weights that leave each input (automatic relevance determination). *exact*: by the log-determinant of all data, in full.
*input scales*: the inputs multiplied by learned scales instead. *Gaussian process*: scikit-learn, squared exponential
with a length for each input. *grid*: scikit-learn's network of the same shape (L-BFGS), its penalty by
cross-validation, noise from the held-out errors. Mean over the splits with its standard error, in the units of the
targets; log evidence a datum (of the bound, of the exact value, of the process); seconds of processor time, median of a
split, compilation included.

| data | method | splits | test log-likelihood | RMSE | training RMSE | noise | log evidence | seconds |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
{outcomes}

Each method less *evidence*, on the splits that both were run on:

| data | method | splits | test log-likelihood | RMSE |
| --- | --- | --- | --- | --- |
{pairs}

Published figures, test log-likelihood / RMSE, networks of the same size on 20 splits (probabilistic backpropagation,
Hernández-Lobato and Adams 2015; dropout, tuned on held-out data; both from Table 1 of Gal and Ghahramani 2016,
arXiv 1506.02142):

| data | probabilistic backpropagation | dropout |
| --- | --- | --- |
{published}

Reading. One step of learned input scales multiplies every input by exp(±{hyper_rate}): on the first split of yacht that
takes the training RMSE of a fitted network {moved}. The noise learns that error as if it were the data's, the
prior precisions follow, and the inputs that matter little are lost before the weights can answer. A precision per input
describes the same models, since only the product of scales and weights is seen, and leaves the function as it is.
{reading}
"""
