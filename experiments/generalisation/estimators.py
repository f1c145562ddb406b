"""The estimators on sets that scikit-learn brings: `python -m experiments.generalisation.estimators [--splits 3]`.

Random halves of diabetes (two fifths for breast cancer and wine) train, the rest tests; each split is made by
`train_test_split` with its number as seed, stratified for classes. All columns are standardised by the training rows.
Every estimator has its default settings (`hyprax.sklearn` with `certify=False`), folds included. What is reported is
the mean squared error of the test rows, or their log-loss: means over splits ± standard errors of the paired
difference from the first row of each set; processor seconds, compilation included. Writes estimators.md.
"""

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
from experiments._common import machine
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.linear_model import ElasticNetCV, LogisticRegressionCV, RidgeCV
from sklearn.metrics import log_loss, mean_squared_error
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hyprax.sklearn import TunedLogisticRegression, TunedRidge

ALPHAS = np.logspace(-3, 5, 25)
REGRESSORS = {
    "RidgeCV": RidgeCV(ALPHAS),
    "ElasticNetCV": ElasticNetCV(l1_ratio=[0.1, 0.5, 0.9, 1.0]),
    "TunedRidge()": TunedRidge(certify=False, random_state=0),
    'TunedRidge("feature")': TunedRidge("feature", certify=False, random_state=0),
}
CLASSIFIERS = {
    "LogisticRegressionCV": LogisticRegressionCV(Cs=1 / ALPHAS, scoring="neg_log_loss", max_iter=2000),
    "TunedLogisticRegression()": TunedLogisticRegression(certify=False, random_state=0),
    'TunedLogisticRegression("feature")': TunedLogisticRegression("feature", certify=False, random_state=0),
}
SETS = {
    "diabetes": (load_diabetes, 0.5, REGRESSORS),
    "breast cancer": (load_breast_cancer, 0.4, CLASSIFIERS),
    "wine": (load_wine, 0.4, CLASSIFIERS),
}


def measured(model, data, classes: bool) -> tuple[float, float]:
    """Test loss and processor seconds."""
    x, x_test, y, y_test = data
    began = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = make_pipeline(StandardScaler(), clone(model)).fit(x, y)
    seconds = time.process_time() - began
    if classes:
        return log_loss(y_test, model.predict_proba(x_test)), seconds
    return mean_squared_error(y_test, model.predict(x_test)), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--sets", default=",".join(SETS))
    given = parser.parse_args()
    lines = [
        "| data | estimator | test loss | less the first | seconds, first and median |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for name in given.sets.split(","):
        load, share, models = SETS[name]
        x, y = load(return_X_y=True)
        classes = models is CLASSIFIERS
        found = {}
        for seed in range(given.splits):
            data = train_test_split(x, y, train_size=share, random_state=seed, stratify=y if classes else None)
            for label, model in models.items():
                found.setdefault(label, []).append(measured(model, data, classes))
                print(name, seed, label, *found[label][-1], flush=True)
        first = np.array(next(iter(found.values())))[:, 0]
        for label, rows in found.items():
            loss, seconds = np.array(rows).T
            off = loss - first
            error = f" ± {off.std(ddof=1) / len(off) ** 0.5:.2g}" if len(off) > 1 else ""
            lines.append(
                f"| {name} | `{label}` | {loss.mean():.4g} | {off.mean():+.3g}{error} | {seconds[0]:.1f}, "
                f"{np.median(seconds):.1f} |"
            )
    text = "\n".join(
        [
            "# The estimators on bundled sets",
            "",
            f"{__doc__.split(chr(10) + chr(10), 1)[1].strip()}",
            "",
            f"Run with --splits {given.splits} --sets '{given.sets}' on a {machine()}, busy with other work.",
            "",
            *lines,
            "",
        ]
    )
    (Path(__file__).parent / "estimators.md").write_text(text)


if __name__ == "__main__":
    main()
