"""The duals of one task that share their inner solutions: the squared loss, and the 0-1 loss of a classifier."""

from dataclasses import dataclass

import numpy as np

from ._margins import error_rate
from ._piecewise import PiecewiseFunction
from ._series import Scores


@dataclass(frozen=True)
class ReadoutDuals:
    """What one sweep over the hyperparameter gives for a task with a linear read-out."""

    squared: PiecewiseFunction
    """`α -> mean_j ‖out_j(α) - y_j‖^2` over the validation rows."""
    zero_one: PiecewiseFunction | None
    """`α -> share of the validation rows predicted wrongly`, piecewise constant; a change of a prediction is caught
    in a bracket of 2^-30 of a piece, on which the loss is only enclosed. `None` for a regression."""

    @classmethod
    def assemble(cls, pieces: list[tuple[float, float, Scores]], n_rows: int, classifies: bool) -> "ReadoutDuals":
        """Join the scores of the pieces of a domain."""
        edges = np.array([pieces[0][0], *(hi for _, hi, _ in pieces)])
        scores = [s for _, _, s in pieces]
        loss, radius = np.concatenate([s.loss for s in scores]), np.array([s.loss_radius for s in scores])
        squared = PiecewiseFunction(edges, loss, None, radius)
        if not classifies:
            return cls(squared, None)
        return cls(squared, error_rate(edges, [s.margins for s in scores], [s.margin_radius for s in scores], n_rows))

    @classmethod
    def pooled(cls, parts: "list[ReadoutDuals]", shares: list[float]) -> "ReadoutDuals":
        """The weighted sum, for the splits of one task."""
        if len(parts) == 1:
            return parts[0]
        squared = sum((p.squared * s for p, s in zip(parts[1:], shares[1:], strict=True)), parts[0].squared * shares[0])
        errors = [p.zero_one for p in parts]
        known = [e * s for e, s in zip(errors, shares, strict=True) if e is not None]
        return cls(squared, sum(known[1:], known[0]) if len(known) == len(parts) else None)
