"""Short fronts: an objective, its schedule and a search in one call."""

from ._evidence import EvidenceFit as EvidenceFit, fit_evidence as fit_evidence
