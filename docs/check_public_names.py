"""Fail if a public name has no docstring, or stands on no page of the documentation.

Public is what `hyprax/__init__.pyi` and the `__init__.py` of public subpackages re-export. A page documents a name by
`::: path.of.the.name`; a name with several public paths needs one of them. Run: python docs/check_public_names.py
With --count: how many names each part has, of the house and of later features, as docs/design.md shows them.
"""

import re
import sys
from collections import defaultdict
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path

import griffe

DOCS = Path(__file__).parent
SOURCE = DOCS.parent / "src"

# What later features added to the house, by the paths of a user.
LATER = {
    "callbacks": ("callbacks.*", "search.Callback", "search.Start"),
    "studies of Optuna": ("optuna.*",),
    "PyTorch and other frameworks": ("torch.*", "unroll.oracle"),
    "estimators for scikit-learn": ("sklearn.*",),
    "runs gone on with, saved models": ("resume", "recipes.load", "recipes.Model"),
    "cross-validation and its searches": (
        *(f"search.{name}" for name in ("CrossValidated", "Foldable", "refit", "LBFGS", "TrustRegion")),
        "implicit.ExampleNoise",
    ),
    "holding back": tuple(
        f"search.{name}" for name in ("Gate", "GatedLBFGS", "Towards", "shrinkage_path", "ShrinkagePath")
    ),
    "gains on new data": (
        *(f"search.{name}" for name in ("honest", "Honest", "improvement", "Improvement", "Gain", "rows_needed")),
        "search.Optimism",
        "recipes.Judgement",
    ),
    "criteria, penalties and columns": (
        *(f"implicit.{name}" for name in ("LeaveOneOut", "GCV", "REML", "ElasticNet", "SplineTerms")),
        "families.Chunked",
    ),
    "optimizers, schedules and proofs of runs": tuple(
        f"unroll.{name}" for name in ("Lion", "Muon", "PerWeight", "Schedule", "BallCertifier", "RoundingCertifier")
    ),
    "likelihoods and input scales": tuple(
        f"evidence.{name}" for name in ("HeteroscedasticGaussian", "Bernoulli", "InputScales")
    ),
    "several hyperparameters of many tasks": (
        *(f"tasks.{name}" for name in ("BoxDual", "BoxOptimum", "erm_box", "map_tasks", "forecast", "Forecast")),
        *(f"tasks.complexity.{name}" for name in ("RidgePenalties", "ElasticNetPenalties")),
    ),
    "other duals of tasks, online play": tuple(
        f"tasks.{name}"
        for name in (
            *("SVMPath", "svm_dual", "TrainedDual", "trained_dual", "descent_dual", "SmoothProblem"),
            *("ExponentialForecaster", "OnlineRun", "dispersion", "play"),
        )
    ),
}


def load() -> tuple[griffe.GriffeLoader, griffe.Object | griffe.Alias]:
    """The package as its source says it is, and its loader: nothing is imported."""
    loader = griffe.GriffeLoader(search_paths=[SOURCE])
    root = loader.load("hyprax")
    loader.resolve_aliases(external=True)
    return loader, root


def public_names(root: griffe.Object | griffe.Alias) -> Mapping[str, list[str]]:
    """Where each public object is defined -> the public paths by which a user reaches it."""
    names: dict[str, list[str]] = defaultdict(list)

    def add(package: griffe.Object | griffe.Alias, path: str) -> None:
        names[package.canonical_path].append(path)
        for name, member in package.members.items():
            if name.startswith("_") or (member.is_alias and not _target(member).startswith("hyprax.")):
                continue
            if member.is_module and member.is_init_module:
                add(member, f"{path}.{name}")
            elif member.is_alias:
                names[member.canonical_path].append(f"{path}.{name}")

    add(root, root.path)
    return names


def _target(member: griffe.Object | griffe.Alias) -> str:
    return member.target_path if isinstance(member, griffe.Alias) else member.path


def counted(loader: griffe.GriffeLoader, names: Mapping[str, list[str]]) -> dict[str, tuple[int, int]]:
    """The part that defines names -> how many of the house it has, and how many of later features; no modules."""
    counts: dict[str, tuple[int, int]] = {}
    for canonical, paths in names.items():
        if loader.modules_collection[canonical].is_module:
            continue
        first = canonical.split(".")[1]
        part = "core" if first.startswith("_") else first
        house, later = counts.get(part, (0, 0))
        of_later = any(fnmatch(path, f"hyprax.{asked}") for path in paths for each in LATER.values() for asked in each)
        counts[part] = (house, later + 1) if of_later else (house + 1, later)
    return counts


def table(counts: Mapping[str, tuple[int, int]]) -> str:
    """The counts as a table of Markdown, with their sums."""
    rows = [(part, *both) for part, both in sorted(counts.items())]
    rows.append(("in all", sum(house for _, house, _ in rows), sum(later for _, _, later in rows)))
    lines = [f"| {part} | {house} | {later} | {house + later} |" for part, house, later in rows]
    return "\n".join(["| part | house | later features | together |", "| --- | --- | --- | --- |", *lines])


def main() -> int:
    loader, root = load()
    names = public_names(root)
    if "--count" in sys.argv[1:]:
        print(table(counted(loader, names)))
        return 0
    pages = [page.read_text() for page in DOCS.rglob("*.md")]
    documented = {path for page in pages for path in re.findall(r"^::: ([\w.]+)", page, flags=re.MULTILINE)}

    faults = []
    for canonical, paths in sorted(names.items()):
        target = loader.modules_collection[canonical]
        if not target.has_docstring:
            faults.append(f"{paths[0]}: no docstring ({target.filepath}:{target.lineno})")
        if not target.is_module and not documented.intersection(paths):
            faults.append(f"{paths[0]}: on no page, write `::: {paths[0]}` on one of docs/api/*.md")
    known = {path for paths in names.values() for path in paths}
    faults += [f"{path}: on a page, but not public" for path in sorted(documented - known)]

    print("\n".join(faults) or f"{len(names)} public names, each with a docstring and a place in the documentation")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
