"""The estimators beside those of scikit-learn: `python -m experiments.generalisation.estimators [--splits 3]`.

The sets, training rows and test rows are those of the experiment (`sets.py`). Every estimator has its default settings
(`hyprax.sklearn` with `certify=False`), folds included; gradient boosting stands there for scale. What is reported is
the mean squared error of the test rows over the variance of the training targets, or their log-loss: means over splits
± standard errors of the paired difference from the first row of each set; processor seconds, with compilation at the
first split. Each fit is kept in `out/experiments/estimators.jsonl`, so that a run may be stopped and gone on with. Writes
estimators.md.
"""

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from experiments._common import machine
from experiments.generalisation.sets import BINARY, NAMES, split
from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import ElasticNetCV, LogisticRegressionCV, RidgeCV
from sklearn.metrics import log_loss, mean_squared_error

from hyprax.sklearn import TunedElasticNet, TunedLogisticRegression, TunedRidge

ALPHAS = np.logspace(-3, 5, 25)
OURS: dict[str, Any] = {"certify": False, "random_state": 0}
REGRESSORS = {
    "RidgeCV": RidgeCV(ALPHAS),
    "ElasticNetCV": ElasticNetCV(l1_ratio=[0.1, 0.5, 0.9, 1.0]),
    "HistGradientBoostingRegressor": HistGradientBoostingRegressor(random_state=0),
    "TunedRidge()": TunedRidge(**OURS),
    'TunedRidge("feature")': TunedRidge("feature", **OURS),
    "TunedElasticNet()": TunedElasticNet(**OURS),
}
CLASSIFIERS = {
    "LogisticRegressionCV": LogisticRegressionCV(Cs=1 / ALPHAS, scoring="neg_log_loss", max_iter=2000),
    "HistGradientBoostingClassifier": HistGradientBoostingClassifier(random_state=0),
    "TunedLogisticRegression()": TunedLogisticRegression(**OURS),
    'TunedLogisticRegression("feature")': TunedLogisticRegression("feature", **OURS),
}
FOLDER = Path(__file__).parent


def measured(model: Any, name: str, seed: int) -> dict[str, Any]:
    """Test loss and processor seconds of a fit, and what an estimator of ours says it did."""
    x, y, x_test, y_test = split(name, seed)
    classes = name in BINARY
    if classes:  # its last column is an intercept
        x, x_test = x[:, :-1], x_test[:, :-1]
    began = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = clone(model).fit(x, y)
    seconds = time.process_time() - began
    loss = (
        log_loss(y_test, model.predict_proba(x_test)) if classes else mean_squared_error(y_test, model.predict(x_test))
    )
    return {"loss": float(loss), "seconds": seconds, "kept": "one was kept" in getattr(model, "message_", "")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--splits", type=int, default=3)
    given = parser.parse_args()
    log = Path("out/experiments/estimators.jsonl")
    log.parent.mkdir(parents=True, exist_ok=True)
    lines = log.read_text().splitlines() if log.exists() else []
    found = {(row["set"], row["seed"], row["estimator"]): row for row in map(json.loads, lines)}
    for seed in range(given.splits):
        for name in NAMES:
            for label, model in (CLASSIFIERS if name in BINARY else REGRESSORS).items():
                if (name, seed, label) not in found:
                    row = {"set": name, "seed": seed, "estimator": label, **measured(model, name, seed)}
                    found[name, seed, label] = row
                    with log.open("a") as stream:
                        stream.write(json.dumps(row) + "\n")
                    print(name, seed, label, f"{row['loss']:.4g}", f"{row['seconds']:.1f} s", flush=True)
    (FOLDER / "estimators.md").write_text(page(found, given.splits))


def page(found: dict[tuple[str, int, str], dict[str, Any]], splits: int) -> str:
    rows = [
        "| data | estimator | test loss | less the first | seconds, first and median | one strength kept |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for name in NAMES:
        labels = CLASSIFIERS if name in BINARY else REGRESSORS
        first = np.array([found[name, seed, next(iter(labels))]["loss"] for seed in range(splits)])
        for label in labels:
            own = [found[name, seed, label] for seed in range(splits)]
            loss, seconds = (np.array([row[key] for row in own]) for key in ("loss", "seconds"))
            off = loss - first
            error = f" ± {off.std(ddof=1) / len(off) ** 0.5:.2g}" if len(off) > 1 else ""
            kept = f"{sum(row['kept'] for row in own)} of {splits}" if "feature" in label else "–"
            rows.append(
                f"| {name} | `{label}` | {loss.mean():.4g} | {off.mean():+.3g}{error} | {seconds[0]:.1f}, "
                f"{np.median(seconds):.1f} | {kept} |"
            )
    said = (
        f"`python -m experiments.generalisation.estimators --splits {splits}` on a {machine()}, busy with other work."
    )
    about = (__doc__ or "").split("\n\n", 1)[1].strip()
    return "\n".join(["# The estimators beside those of scikit-learn", "", about, "", said, "", *rows, ""])


if __name__ == "__main__":
    main()
