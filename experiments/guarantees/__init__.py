"""Guarantees over tasks, simulated: how often they fail, and how far they are from the truth."""
