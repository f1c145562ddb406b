"""Guarantees over tasks, simulated: `python -m experiments.guarantees [--quick]`.

The distribution is known: tasks are drawn, with replacement, from the schools of the School data, so the expected loss
of every hyperparameter is the mean over those schools. For each draw of n tasks the hyperparameter with the smallest
mean loss is chosen, bounds are computed from the drawn tasks alone, and compared with the truth: how often they fail,
beside delta, and how large they are.

- One hyperparameter: the l1 penalty of the elastic net, exact duals; excess and deviation.
- Two: both penalties, enclosures on boxes; chosen on a grid of 40 x 40, as a bound holds whatever is chosen.

Beside the split bounds stand what one would do without dual functions: Hoeffding's inequality and the empirical
Bernstein inequality at all points of a grid of 100 at once (they speak of the grid alone); and the Rademacher bound, on
the first draws only, as it takes so long.

Writes RESULTS.md beside this file; with --quick into out/experiments.
"""

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import jax
import numpy as np
from experiments._common import machine, results_folder
from experiments.stores.data import hold_out, schools
from threadpoolctl import threadpool_limits

from hyprax.tasks import BoxDual, PiecewiseFunction, _split_boxes as split_boxes, elastic_net_dual, erm_box
from hyprax.tasks._bounds import empirical_bernstein_bound
from hyprax.tasks._boxes import ranges
from hyprax.tasks._split import BETS, Ground, Means, _split, mean_bound, plan
from hyprax.tasks.complexity import rademacher_complexity

HERE = results_folder(__file__)
N, GRID, RADEMACHER, SCHOOLS = 60, 100, 10, 40
LINE, BOX = (0.01, 1.0), ((0.001, 1.0), (0.001, 10.0))
KINDS: dict[str, Means] = {"split, wealth": "wealth", "split, empirical Bernstein": "bernstein"}
ON_GRID = ("Hoeffding on a grid", "empirical Bernstein on a grid")
Found = dict[tuple[float, str, str], list[tuple[float, float]]]
"""(bound, truth) of every draw, by delta, target and the name of the bound."""


def one(many: dict[float, int], seconds: float) -> Found:
    """Bounds and truths for one hyperparameter."""
    pool = [elastic_net_dual(hold_out(k), LINE, penalty2=0.1).clip(1.0) for k in range(len(schools()))]
    grid = np.geomspace(*LINE, GRID).clip(*LINE)
    table = np.stack([f(grid) for f in pool])
    expected = PiecewiseFunction.mean(pool)
    least, found = expected.minimise().lower, {}
    for seed in until(max(many.values()), seconds):
        at = np.random.default_rng([1, seed]).integers(len(pool), size=N)
        sample, key, losses = [pool[i] for i in at], jax.random.key(seed), table[at]
        mean = PiecewiseFunction.mean(sample)
        hyper = mean.minimise().hyper
        best = int(np.argmin(losses.mean(axis=0)))
        truth = {
            "excess": (float(expected(hyper)) - least, table[:, best].mean() - table.mean(axis=0).min()),
            "deviation": (float(expected(hyper)) - float(mean(hyper)), float((table.mean(0) - losses.mean(0))[best])),
        }
        whole, below = _split(sample, hyper, 0.5, 1.0, 0.15, key), float(mean.enclose(hyper)[0])
        for delta in (delta for delta, draws in many.items() if seed < draws):
            split = replace(whole, share=whole.share * delta / 0.5)
            cells = plan(split, 1.0)[:4]
            values = {
                (target, name): excess_of(split, cells, means) if target == "excess" else risk_of(split, means) - below
                for target in truth
                for name, means in KINDS.items()
            }
            spread = math.sqrt(math.log(2 * GRID / delta) / (2 * N))
            values["excess", ON_GRID[0]] = 2 * spread
            values["deviation", ON_GRID[0]] = math.sqrt(math.log(GRID / delta) / (2 * N))
            upper = empirical_bernstein_bound(losses[:, best], delta / 2 / GRID, 1.0)
            lower = min(-empirical_bernstein_bound(-x, delta / 2 / GRID, 1.0) for x in losses.T)
            values["excess", ON_GRID[1]] = upper - lower
            certain = empirical_bernstein_bound(losses[:, best], delta / GRID, 1.0)
            values["deviation", ON_GRID[1]] = certain - float(losses[:, best].mean())
            if seed < RADEMACHER:
                complexity = rademacher_complexity(sample, key=key, draws=300, delta=0.1 * delta)
                for target in truth:
                    values[target, "Rademacher"] = complexity.bound(delta, target=target)
            for (target, name), value in values.items():
                pair = float(value), float(truth[target][name in ON_GRID])
                found.setdefault((delta, target, name), []).append(pair)
    return found


def until(draws: int, seconds: float) -> Iterator[int]:
    """Numbers of draws, as long as there is time."""
    end = time.monotonic() + seconds
    for seed in range(draws):
        if time.monotonic() > end:
            return
        yield seed


def excess_of(ground: Ground, cells: tuple[np.ndarray, ...], means: Means) -> float:
    """`split_excess_bound`, of what the choosing tasks have planned."""
    top, bound = ground.tops()[ground.certifying], 0.0
    for start, stop, share, bet in zip(*cells, strict=True):
        difference = np.minimum(top - ground.lo[ground.certifying, start:stop].min(axis=1), 1.0)
        bound = max(bound, mean_bound(difference, share, (-1.0, 1.0), int(bet), means))
    return bound


def risk_of(ground: Ground, means: Means) -> float:
    """`split_risk_bound`, likewise."""
    top = np.minimum(ground.tops(), 1.0)
    price = np.log(1 / ground.share) / len(ground.certifying)
    bet = int(np.argmin(price / BETS + 0.5 * BETS * np.var(top[ground.choosing])))
    return mean_bound(top[ground.certifying], ground.share, (0.0, 1.0), bet, means)


class Known:
    """The ranges of all tasks of the population on boxes, each computed once: boxes recur from draw to draw."""

    def __init__(self, pool: Sequence[BoxDual]):
        self.whole, self.seen = pool[0].boxes.joined([f.boxes for f in pool[1:]]), {}
        self.number = {id(f): i for i, f in enumerate(pool)}

    def together(self, duals: Sequence[BoxDual]) -> list[int]:
        """In place of the splits of the duals: their numbers."""
        return [self.number[id(f)] for f in duals]

    def ranges(self, tasks: list[int], p: int, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, ...]:
        """As `ranges`, with the movement of the whole population."""
        names = [(*a.tolist(), *b.tolist()) for a, b in zip(low, high, strict=True)]
        new = [i for i, name in enumerate(names) if name not in self.seen]
        if new:
            lo, hi, moved = ranges(self.whole, p, low[new], high[new])
            self.seen.update((names[i], (lo[:, k], hi[:, k], moved[k])) for k, i in enumerate(new))
        lo, hi, moved = (np.stack(x, axis=-1) for x in zip(*(self.seen[name] for name in names), strict=True))
        return lo[tasks], hi[tasks], moved.T


def two(many: dict[float, int], seconds: float) -> Found:
    """Bounds and truths for both penalties."""
    pool = [BoxDual.elastic_net(hold_out(k), BOX).clip(1.0) for k in range(SCHOOLS)]
    least = erm_box(pool, gap=3e-3, progress=False).lower
    axes = [np.geomspace(a, b, 40).clip(a, b) for a, b in BOX]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    known = Known(pool)
    # Every school is one split: its loss at each point, as computed, cut at 1.
    parts = [known.whole.bounds(x, x, None, points=True).coefficients[..., 0] for x in np.split(grid, 40)]
    table = np.minimum(np.concatenate(parts).T, 1.0)
    split_boxes.together, split_boxes.ranges = known.together, known.ranges  # the same numbers, each computed once
    found: Found = {}
    for seed in until(max(many.values()), seconds):
        at = np.random.default_rng([2, seed]).integers(len(pool), size=N)
        means = table[at].mean(axis=0)
        best = int(np.argmin(means))
        ground = split_boxes.BoxGround.of([pool[i] for i in at], 1.0, 0.15, jax.random.key(seed))
        for delta in (delta for delta, draws in many.items() if seed < draws):
            for target in ("excess", "deviation"):
                truth = table[:, best].mean() - (least if target == "excess" else means[best])
                for name, kind in KINDS.items():
                    certify = ground.excess if target == "excess" else ground.risk
                    value = certify(grid[best], delta, kind).bound - (0.0 if target == "excess" else means[best])
                    found.setdefault((delta, target, name), []).append((value, float(truth)))
    return found


def rows(what: str, found: Found) -> list[str]:
    """Rows of the table."""
    lines = []
    for delta, target, name in sorted(found, key=lambda k: (-k[0], k[1] == "deviation")):
        bounds, truths = np.array(found[delta, target, name]).T
        fails = np.mean(bounds < truths)
        allowed = min(delta + 2 * math.sqrt(delta * (1 - delta) / len(bounds)), 1.0)
        lines.append(
            f"| {what} | {target} | {delta:g} | {name} | {len(bounds)} | {fails:.3f} | {allowed:.3f} | "
            f"{np.mean(bounds):.4f} | {np.mean(truths):.4f} | {np.quantile(truths, 1 - delta):.4f} |"
        )
    print("\n".join(lines), flush=True)
    return lines


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="4 draws of each")
    parser.add_argument("--minutes", type=float, default=math.inf, help="for each of the two parts, at most")
    arguments = parser.parse_args()
    many = {0.5: 4, 0.1: 4} if arguments.quick else {0.5: 1000, 0.1: 300}
    with threadpool_limits(1):
        table = rows("one, l1", one(many, 60 * arguments.minutes))
        table += rows("two, l1 and l2", two(many, 60 * arguments.minutes))
    limited = "" if math.isinf(arguments.minutes) else f" --minutes {arguments.minutes:g}"
    text = f"""# Guarantees over tasks, simulated

    python -m experiments.guarantees{" --quick" if arguments.quick else limited}

Measured on a {machine()}, one thread.
Tasks are drawn with replacement from the schools of the School data (139 for one hyperparameter, {SCHOOLS} for two),
{N} at a time; losses are squared errors in parts of the variance of all scores, cut at 1. "fails" is the share of draws
in which the truth exceeds the bound; it may be at most delta, and "allowed" is delta with two standard errors of the
share. "bound" and "truth" are means over the draws, "quantile" the 1 - delta quantile of the truth: the smallest number
that could be promised before the draw, by somebody who knows the distribution. On a grid of {GRID} the bounds speak of
the grid alone.

| hyperparameters | target | delta | bound | draws | fails | allowed | bound | truth | quantile |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
{chr(10).join(table)}
"""
    (HERE / "RESULTS.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
