"""One small frozen network, its data, and what laplace-torch says of its marginal likelihood. NumPy only.

The numbers of `LAPLACE_TORCH` are printed by `python tests/evidence/laplace_torch_reference.py`, in an environment with
laplace-torch 0.3 and torch 2.13 (CPU, float64).
"""

import numpy as np

N, D, H, C = 40, 4, 5, 3
PRECISIONS = (0.05, 0.7, 20.0)
SIGMA = 0.3


def network() -> dict[str, np.ndarray]:
    """tanh(x W1 + b1) W2 + b2."""
    rng = np.random.default_rng(2)
    return {
        "W1": rng.normal(size=(D, H)),
        "b1": 0.3 * rng.normal(size=H),
        "W2": rng.normal(size=(H, C)),
        "b2": 0.3 * rng.normal(size=C),
    }


def inputs() -> np.ndarray:
    return np.random.default_rng(3).normal(size=(N, D))


def labels() -> np.ndarray:
    return np.random.default_rng(4).integers(0, C, N)


def targets() -> np.ndarray:
    return np.random.default_rng(5).normal(size=(N, C))


LAPLACE_TORCH = {
    ("classification", "full", 0.05): -155.28156783589804,
    ("classification", "full", 0.7): -138.92374044056373,
    ("classification", "full", 20.0): -447.9406408433579,
    ("classification", "kron", 0.05): -176.0586135487626,
    ("classification", "kron", 0.7): -148.97590479620322,
    ("classification", "kron", 20.0): -448.86292949729386,
    ("classification", "diag", 0.05): -188.97932752260107,
    ("classification", "diag", 0.7): -153.02709127142575,
    ("classification", "diag", 20.0): -448.65710677181977,
    ("regression", "full", 0.05): -4185.745237381837,
    ("regression", "full", 0.7): -4142.111810130635,
    ("regression", "full", 20.0): -4407.539214443413,
    ("regression", "kron", 0.05): -4205.411159537759,
    ("regression", "kron", 0.7): -4159.930881389463,
    ("regression", "kron", 20.0): -4418.3882972210395,
    ("regression", "diag", 0.05): -4211.605037687032,
    ("regression", "diag", 0.7): -4166.102353421447,
    ("regression", "diag", 20.0): -4422.84059153462,
}
"""(likelihood, structure, prior precision) -> log marginal likelihood."""
