"""What the weights of training examples say of their labels."""

import numpy as np

from ._data import Splits

SHOWN = 20


def wrong_labels(weights: np.ndarray, splits: Splits) -> list[dict[str, str]]:
    """How well low weights tell the k labels that were made wrong from the others, k known.

    - found: how many of the k examples of least weight are among them.
    - by chance: what a random choice would find, k²/n.
    - AUC: the probability that a wrong label has a lower weight than a right one, ties counting half.
    """
    from sklearn.metrics import roc_auc_score

    wrong = splits.corrupted
    count, size = int(wrong.sum()), len(wrong)
    least = np.argsort(weights, kind="stable")[:count]
    found = int(wrong[least].sum())
    return [
        {
            "training examples": str(size),
            "wrong labels": str(count),
            f"found among the {count} of least weight": f"{found} ({found / count:.1%})",
            "by chance": f"{count**2 / size:.0f} ({count / size:.1%})",
            "AUC": "–" if wrong.all() else f"{roc_auc_score(wrong, -weights):.4f}",
            "mean weight, wrong and right": f"{weights[wrong].mean():.3g}, {weights[~wrong].mean():.3g}",
        }
    ]


def least_weights(weights: np.ndarray, splits: Splits) -> list[dict[str, str]]:
    """The examples of least weight: their rows in the data, counted from 1, their labels, their weights."""
    rows = []
    for place in np.argsort(weights, kind="stable")[:SHOWN]:
        target = splits.train[1][place]
        row = {
            "row": str(splits.rows[place] + 1),
            "label": splits.classes[int(target)] if splits.classes else f"{target:.4g}",
            "weight": f"{weights[place]:.3g}",
        }
        if np.any(splits.corrupted):
            row["label was made wrong"] = "yes" if splits.corrupted[place] else "no"
        rows.append(row)
    return rows
