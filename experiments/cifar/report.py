"""The tables and the picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from experiments._common import machine, pyplot

from .methods import DEFAULT, GRID, SAMPLES, Settings

Row = dict[str, Any]
COLUMNS = {
    "log_likelihood_before": ("log-likelihood before", 3),
    "accuracy_before": ("accuracy before", 1),
    "log_likelihood": ("log-likelihood", 3),
    "accuracy": ("accuracy", 1),
    "ece": ("ECE", 1),
    "train_log_likelihood": ("training log-likelihood", 3),
    "bound": ("log evidence, common bound", 3),
    "epoch": ("epoch kept", 0),
    "decrement": ("decrement", 1),
    "seconds": ("seconds", 0),
    "seconds_to_mode": ("to the mode", 0),
}
POSTERIORS = {
    "log_likelihood": ("log-likelihood, weights kept", 3),
    "last_layer_log_likelihood": ("last layer", 3),
    "linearised_log_likelihood": ("all layers", 3),
    "ece": ("ECE, weights kept", 1),
    "last_layer_ece": ("last layer", 1),
    "linearised_ece": ("all layers", 1),
    "accuracy": ("accuracy, weights kept", 1),
    "linearised_accuracy": ("all layers", 1),
}
KERNELS = ("w", "w1", "w2", "shortcut")


def grouped(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each method."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["cell"][0], []).append(row)
    return found


def shown(values: Sequence[float], digits: int) -> str:
    """The mean and its standard error."""
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {np.std(values, ddof=1) / len(values) ** 0.5:.{digits}f}"


def table(found: dict[str, list[Row]], columns: dict[str, tuple[str, int]]) -> str:
    lines = [f"| method | {' | '.join(head for head, _ in columns.values())} |", "| --- " * (1 + len(columns)) + "|"]
    for name, rows in found.items():
        cells = []
        for key, (_, digits) in columns.items():
            values = [row[key] for row in rows]
            cells.append(shown([min(values)] if key.startswith("seconds") else values, digits))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def picture(file: Path, found: dict[str, list[Row]]) -> None:
    """The precision kept for each tensor, by method; and those of the first seed over the epochs."""
    plt = pyplot()
    learned = {name: rows for name, rows in found.items() if rows[0]["history"]}
    names = sorted(next(iter(learned.values()))[0]["precisions"], key=_depth)
    kernels = [name for name in names if name.split()[-1] in KERNELS]
    names = kernels + [name for name in names if name not in kernels]
    figure, (above, below) = plt.subplots(2, 1, figsize=(12, 9), layout="constrained", height_ratios=(3, 2))
    width = 0.8 / len(learned)
    for k, (name, rows) in enumerate(learned.items()):
        logs = np.log10([[row["precisions"][tensor] for tensor in names] for row in rows])
        at = np.arange(len(names)) + (k - (len(learned) - 1) / 2) * width
        style = {"color": f"C{k}", "marker": "osDv^<>P"[k % 8], "ms": 4.5, "lw": 1.2}
        above.errorbar(at, 10 ** logs.mean(0), yerr=_around(logs), ls="", label=name, **style)
        history = rows[0]["history"]
        over = [np.mean([np.log10(moment[tensor]) for tensor in kernels]) for moment in history]
        below.plot([moment["epoch"] for moment in history], 10 ** np.array(over), **style)
        kept = [moment["epoch"] for moment in history].index(rows[0]["epoch"])
        below.plot(rows[0]["epoch"], 10 ** over[kept], ls="", marker="o", ms=12, mfc="none", color=f"C{k}")
    for row in found.get(GRID, []):
        above.axhline(_of_grid(row), color="k", ls=":", lw=1, label="grid, each seed" if row["cell"][1] == 0 else None)
    for place in range(0, len(names), 2):
        above.axvspan(place - 0.5, place + 0.5, color="k", alpha=0.05, lw=0)
    above.axvline(len(kernels) - 0.5, color="k", lw=0.8)
    above.set(yscale="log", ylabel="prior precision kept", xlim=(-0.5, len(names) - 0.5))
    labels = [name.replace("_block", ".").replace("stage", "s").replace(" ", "\n") for name in names]
    above.set_xticks(range(len(names)), labels)
    figure.legend(*above.get_legend_handles_labels(), loc="outside upper center", ncols=5)
    below.set(yscale="log", xlabel="epoch", ylabel="precision, geometric mean of\nkernels and head, first seed")
    below.yaxis.set_minor_formatter("{x:.0f}")
    below.yaxis.set_major_formatter("{x:.0f}")
    below.grid(alpha=0.3, which="both")
    figure.savefig(file, dpi=90)
    plt.close(figure)


def _depth(tensor: str) -> tuple[int, str]:
    """From the input to the outputs."""
    return ("stem", "stag", "head").index(tensor[:4]), tensor


def _around(logs: np.ndarray) -> np.ndarray:
    """From the geometric mean to the least and the largest of the seeds."""
    middle = 10 ** logs.mean(0)
    return np.stack([middle - 10 ** logs.min(0), 10 ** logs.max(0) - middle]).clip(0)


def _of_grid(row: Row) -> float:
    """The one precision of all tensors."""
    return next(iter(row["precisions"].values()))


def write(folder: Path, rows: Sequence[Row], settings: Settings, options: str) -> None:
    found = grouped(rows)
    picture(folder / "precisions.png", found)
    seeds = len(next(iter(found.values())))
    reading = "" if "--quick" in options or "--full" in options else READING  # which is of these runs alone
    text = (RESULTS + reading).format(
        options=options,
        machine=machine(),
        version=jax.__version__,
        settings=settings,
        means="One seed." if seeds == 1 else f"Means over {seeds} seeds with standard errors.",
        default=DEFAULT,
        samples=SAMPLES,
        grid=", ".join(f"{precision:g}" for precision in settings.grid),
        chosen=", ".join(f"{_of_grid(row):g}" for row in found.get(GRID, [])) or "none",
        outcomes=table(found, COLUMNS),
        posteriors=table(found, POSTERIORS),
    )
    (folder / "RESULTS.md").write_text(text)


RESULTS = """# Prior precisions of a residual network on a CIFAR-10 subset

    python -m experiments.cifar{options}

Measured on a {machine}, one thread, the machine shared with other work,
float32, JAX {version}. Reduced: the first {settings.train} training and {settings.test} test images, averaged to
{settings.side} x {settings.side}, without augmentation; {settings.network.name} with Fixup in place of normalisation,
{settings.epochs} epochs of Adam (rate {settings.rate}, falling as a cosine) in batches of {settings.batch}. `--full` is
WRN-16-4 on 32 x 32 for 300 epochs with the published schedule of the precisions, for a machine with a card.

- *MAP*: precision {default} for all tensors. *MAP, grid*: one of {grid}, by the log-likelihood of a held-out tenth,
  then trained again on all data (chosen, by seed: {chosen}). Last weights.
- All others learn a precision for each tensor from the training data alone: from {settings.start}, after a burn-in of
  {settings.burn_in} epochs, by {settings.hyper_steps} steps of Adam (rate {settings.hyper_rate}) at intervals of
  {settings.every} (KFAC: {settings.kfac_every}, and as many steps an epoch). Last weights and precisions.
- For all, a last stage then takes the weights towards their mode at these precisions, by at most
  {settings.to_mode} steps of L-BFGS on all training images (`hx.evidence.to_mode`). *Decrement*: the nats, of
  all images, that a Newton step would still add, from above; *before*: on the test images before that stage.
- Bounds: *subset*: that of Immer et al. (2023) for one random output of {settings.one_row} data. *chain*:
  {settings.one_row} rows, one a datum, or all outputs of {settings.all_rows} data. *tangent*: {settings.tangent} fresh
  data a draw; basis and guess from as many others, or from past draws.
- No bounds: *KFAC*: factors of all data. *released heuristic*: as the subset, the covariance of the outputs ignored.
  *midpoint*: the mean of the two sides of the chain.

{means} Log-likelihoods are a datum in nats, accuracy and ECE per cent, of the
test images unless it says training. The common bound of the log evidence is the same for all methods, a datum in nats:
the tangent bound with {settings.common[0]} fresh and {settings.common[1]} reference data, mean of
{settings.common[2]} draws. Seconds are of one core, the least of the seeds, as the first holds the compilation; those
of the grid are of all its runs.

{outcomes}

![The precisions kept for each tensor, and their mean over the epochs](precisions.png)

Above: geometric mean over the seeds, least and largest; kernels and head on the left. Below: the first seed, what was
kept in a ring.

What the weights that were kept predict by themselves, and what the mean of the softmax over {samples} draws of the
outputs does, f ~ N(f(x; w), J Σ Jᵀ), by the Laplace posterior at the precisions kept: of the last layer, from all data;
of all layers, from {settings.linearised} random data with all outputs, each standing for N/{settings.linearised}, which
on average leaves too much variance, never too little.

{posteriors}
"""
READING = """
## Reading

- The last stage does not end at a mode: {settings.to_mode} steps leave 130 nats at precision 1, and hundreds to
  thousands where precisions are learned or chosen, for {settings.train} images. So no evidence here is one of weights
  that have arrived, and the common bound sets no order.
- What the stage does is plain all the same. At precision 1, and at the precision of the grid, the training images are
  then fitted nearly without error, and the test log-likelihood falls from -2.0 and -1.7 to -11.3 and -7.1: early
  stopping was what kept it, and a grid that is judged on weights stopped early chooses a precision that needs it. At
  precisions learned from the training images alone by bounds it falls by half a nat at most, and by the subset bound
  and the tangent of past draws it rises.
- On these plain images learning pays no accuracy at the end: before the last stage the learned precisions are up to
  4.6 points behind precision 1, after it they are 3 to 6.6 points ahead of it, and 1.5 to 5 ahead of the grid.
- KFAC and the midpoint, which bound nothing, learn the smallest precisions and lose the most of the log-likelihood on
  the way to the mode; the bounds, which push precisions up, lose least.
- A posterior of the last layer or of all layers mends what the last stage does to the log-likelihood where precisions
  are small, and changes little where they are learned by bounds. That of all layers, from {settings.linearised} data,
  is too wide: at precision 1 it loses most of the accuracy.
- One seed, 1000 training and 1000 test images: two points of accuracy are within the noise (1.5 points for one of
  these). The table of 4000 images and three seeds, of weights as thirty epochs leave them, has been replaced.
"""
