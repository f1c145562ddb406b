"""The peers of `tables`, run in workers, each of which imports its own library alone. Those in R run by Rscript."""

import subprocess
import tempfile
from pathlib import Path

import numpy as np

COUNT, SEGMENTS = 100, 15


def _grid(domain):
    return np.geomspace(*domain, COUNT)


def _pairs(data):
    numbers, folds = np.arange(len(data["x"])), data["folds"]
    return [(numbers[folds != k], numbers[folds == k]) for k in np.unique(folds)]


def _training(data):
    """The rows of a training part: a penalty of a sum is as many times that of a mean."""
    return int(np.sum(data["folds"] != 0))


def ridge_cv(data, domain):
    from sklearn.linear_model import RidgeCV

    pairs, rows = _pairs(data), _training(data)

    def run():
        model = RidgeCV(rows * _grid(domain), cv=pairs, scoring="neg_mean_squared_error").fit(data["x"], data["y"])
        return {"l1": model.alpha_ / rows}

    return run


def elastic_net_cv(data, ratios, domain):
    from sklearn.linear_model import ElasticNetCV

    pairs = _pairs(data)

    def run():
        model = ElasticNetCV(l1_ratio=ratios, alphas=_grid(domain)[::-1], cv=pairs, max_iter=20_000, selection="cyclic")
        model.fit(data["x"], data["y"])
        return {"l1": model.alpha_ * model.l1_ratio_, "l2": model.alpha_ * (1 - model.l1_ratio_)}

    return run


def logistic_cv(data, domain):
    from sklearn.linear_model import LogisticRegressionCV

    pairs, rows = _pairs(data), _training(data)

    def run():
        model = LogisticRegressionCV(
            Cs=1 / (rows * _grid(domain)),
            cv=pairs,
            scoring="neg_log_loss",
            max_iter=1000,
            l1_ratios=(0.0,),
            use_legacy_attributes=False,
        )
        model.fit(data["x"], data["y"].astype(int))
        return {"l1": 1 / (rows * model.C_)}

    return run


def himalaya_ridge(data, domain):
    from himalaya.ridge import RidgeCV

    rows = _training(data)

    class Folds:
        """The splitter of these folds."""

        def split(self, x, y=None):
            return iter(_pairs(data))

        def get_n_splits(self, *_):
            return len(_pairs(data))

    def run():
        model = RidgeCV(alphas=rows * _grid(domain), fit_intercept=True, cv=Folds()).fit(data["x"], data["y"])
        return {"l1": float(np.ravel(model.best_alphas_)[0]) / rows}

    return run


def pygam(data):
    from pygam import LinearGAM, s

    def run():
        terms = s(0, n_splines=SEGMENTS + 3)
        for j in range(1, data["x"].shape[1]):
            terms += s(j, n_splines=SEGMENTS + 3)
        model = LinearGAM(terms).gridsearch(data["x"], data["y"], progress=False)
        return {"fitted": model.predict(data["x"]), "freedom": model.statistics_["edof"]}

    return run


def _in_r(script, data, *settings):
    """A run of Rscript on the arrays as a table; it measures itself, and writes its answer as lines of numbers."""

    def run():
        with tempfile.TemporaryDirectory() as folder:
            table, path = Path(folder) / "data.csv", Path(__file__).with_name(script)
            columns = [data["x"], data["y"][:, None], *([data["folds"][:, None]] if "folds" in data else [])]
            names = [f"x{j}" for j in range(data["x"].shape[1])] + ["y", *(["fold"] if "folds" in data else [])]
            np.savetxt(table, np.hstack(columns), delimiter=",", header=",".join(names), comments="", fmt="%.17g")
            asked = ["Rscript", str(path), str(table), *map(str, settings)]
            done = subprocess.run(asked, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"Rscript ended with {done.returncode}: {done.stderr.strip()[-200:]}")
        measured, *answer = (np.array(line.split(), float) for line in done.stdout.splitlines()[-3:])
        return dict(zip(("cpu_seconds", "wall_seconds", "grown_bytes", "peak_bytes"), measured, strict=True)), answer

    return run


def glmnet(data, alpha, family, domain):
    rscript = _in_r("glmnet.R", data, alpha, family, *domain, COUNT)

    def run():
        measured, (_, penalty) = rscript()
        return measured | {"l1": float(penalty[0])} | ({"l2": 0.0} if alpha else {})

    return run


def mgcv(data, criterion):
    rscript = _in_r("mgcv.R", data, SEGMENTS, criterion)

    def run():
        measured, (freedom, fitted) = rscript()
        return measured | {"fitted": fitted, "freedom": float(freedom[0])}

    return run
