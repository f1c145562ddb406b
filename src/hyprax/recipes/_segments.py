"""What errors cost by segment: the losses of the test rows apart by the values of a column."""

from typing import Any

import numpy as np

from ._job import Job
from ._judgement import Judgement, spread

MOST = 12
"""Rows of the table: with more segments the smallest are one row."""
LONGEST = 60


def by_segment(job: Job, judgement: Judgement | None) -> list[dict[str, Any]]:
    """The table of mean test losses by segment, the largest first; none where rows have no segments.

    Of a segment S of n rows with the gains d_i = (loss of the single penalty - loss of the tuned penalties) the gain is
    (1/n) Σ_{i in S} d_i, and its standard error that of `spread`: over the rows of S; over the groups in S where rows
    are split by groups and S is more than one of them, or is of another column. Of one row, or one group, it is a dash.
    Where rows count by their class, c_i, losses and gains are Σ c_i ℓ_i/Σ c_i over S, the lower sum held fixed in the
    standard error: a mean over S, and not over the mixture of its classes.
    """
    splits = job.splits
    if judgement is None or splits is None or splits.segments is None:
        return []
    names = ("a constant", "single penalty", "tuned")  # short: terminals are narrow
    losses = dict(zip(names, (model.losses for model in judgement.models), strict=True))
    all_gains = losses["single penalty"] - losses["tuned"]
    data: Any = job.recipe.data
    counted = splits.weights_of(splits.test[1])
    column, own = data.segments or data.groups, data.segments in (None, data.groups)
    head = f"{column} (column)" if column in ("test rows", *names, "gain") else column
    rows = []
    for name, inside in _segments(splits.segments):
        clusters = None if splits.clusters is None else splits.clusters[inside]
        if own and clusters is not None and len(np.unique(clusters)) == 1:
            clusters = None  # its rows are all there is of it
        mean_count = counted[inside].mean()
        gains = all_gains[inside] / mean_count
        error, _ = spread(gains, clusters)
        rows.append(
            {
                head: name,
                "test rows": str(int(inside.sum())),
                **{model: f"{each[inside].mean() / mean_count:.4f}" for model, each in losses.items()},
                "gain": f"{gains.mean():.4f} ± {f'{error:.4f}' if np.isfinite(error) else '–'}",
            }
        )
    title = f"Mean test losses by {column}, and the gain over the single penalty"
    title += " (± one standard error; of many segments some stand out by chance)"
    title += "; rows count by their class" if splits.class_weights else ""
    return [{"title": title, "rows": rows}]


def _segments(of_rows: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Names of segments and their rows, as masks: from the largest down, equal ones by name, the last all others."""
    names, numbers, counts = np.unique(of_rows, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    kept = order if len(order) <= MOST else order[: MOST - 1]
    found = [(_shown(str(names[place])), numbers == place) for place in kept]
    if len(kept) < len(order):
        found.append((f"{len(order) - len(kept)} others", ~np.isin(numbers, kept)))
    seen: dict[str, int] = {}
    for place, (name, inside) in enumerate(found):  # what is cut short or empty may look like another
        seen[name] = seen.get(name, 0) + 1
        found[place] = (name if seen[name] == 1 else f"{name} ({seen[name]})", inside)
    return found


def _shown(name: str) -> str:
    if not name:
        return "(empty)"
    return name if len(name) <= LONGEST else f"{name[:LONGEST]}…"
