"""Sampling designs of [`hyprax.evidence.Chain`][]: which rows are looked at, and with what weight."""

from .._designs import (
    AbstractDesign as AbstractDesign,
    Blocks as Blocks,
    OneRow as OneRow,
    Sample as Sample,
    ScoredRows as ScoredRows,
    TwoPhase as TwoPhase,
    UniformRows as UniformRows,
)
