"""Sampling designs of [`hyprax.evidence.Chain`][]: which rows are looked at, and with what weight."""

from .._designs import Blocks as Blocks, OneRow as OneRow, Rows as Rows
