"""`hyprax tasks`: tune, needed, gap and plot, on the command line."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer

from .._executors import cluster as on_cluster
from ..tasks import GlobalOptimum, erm, gap, tasks_needed
from ..tasks._bounds import Target
from ..tasks.complexity import (
    Bounded,
    Intervals,
    Lipschitz,
    Oscillations,
    Pieces,
    PseudoDimension,
    Structure,
)
from ._tasks import Duals, Settings, duals_of, load_settings
from ._tasks_guess import SAME_AS, settings_for

app = typer.Typer(
    help="One hyperparameter for many tasks: tuned globally, with a guarantee for the tasks to come.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

_COUNTED: dict[str, Callable[[int, float], Structure]] = {
    "intervals": lambda count, width: Intervals(count, range=width),
    "oscillations": lambda count, width: Oscillations(count, range=width),
    "pieces": lambda count, width: Pieces(count, range=width),
    "rational-degree": lambda count, width: Intervals.rational(count, range=width),
    "ridge-rank": lambda count, width: Intervals.ridge(count, range=width),
    "lasso-kinks": lambda count, width: Intervals.lasso(count, range=width),
    "pseudo-dimension": lambda count, width: PseudoDimension(count, range=width),
}
"""Structures that one integer says all of."""

SettingsFile = Annotated[Path, typer.Argument(help="The TOML file.", metavar="FILE.toml")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No count of tasks on the terminal.")]
StructureOption = Annotated[
    list[str] | None,
    typer.Option(
        help="KIND=COUNT or lipschitz=CONSTANT:LOW:HIGH; give several if all hold. Kinds: " + ", ".join(_COUNTED) + "."
    ),
]
Range = Annotated[float, typer.Option("--range", help="H: every loss lies in [0, H].")]
Delta = Annotated[float, typer.Option(help="Probability with which the guarantee may fail.")]
TargetOption = Annotated[
    Target, typer.Option("--target", parser=str, metavar="NAME", help="excess or deviation.")  # `gap` refuses others
]


@contextmanager
def _one_line() -> Iterator[None]:
    """A mistake of the user, and arithmetic that fails, end in one line on stderr and exit code 2."""
    try:
        yield
    except (ValueError, ArithmeticError) as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from None


def parse_structures(texts: list[str] | None, width: float) -> list[Structure]:
    """`["ridge-rank=20", "lipschitz=3:0:1"]` as structures."""
    found: list[Structure] = []
    for text in texts or []:
        kind, _, value = text.partition("=")
        try:
            if kind == "lipschitz":
                constant, low, high = (float(part) for part in value.split(":"))
                found.append(Lipschitz(constant, (low, high), range=width))
                continue
            count = int(value)
        except ValueError as error:
            raise ValueError(f"--structure {text}: {error}") from None
        if kind not in _COUNTED:
            raise ValueError(f"--structure {text}: the kind must be lipschitz or one of {', '.join(_COUNTED)}")
        found.append(_COUNTED[kind](count, width))
    return found


def _optimum(settings: Settings, base: Path, quiet: bool, cluster: str | None = None) -> tuple[Duals, GlobalOptimum]:
    """The duals, and the optimum over those tasks that have one."""
    with nullcontext() if cluster is None else on_cluster(cluster) as executor:
        found = duals_of(settings, base, not quiet, executor)
    aside, epsilon = settings.set_aside, settings.epsilon
    return found, erm(found.duals, names=found.names, set_aside=aside, epsilon=epsilon, progress=not quiet)


@app.command("tune")
def tune_command(
    file: Annotated[Path, typer.Argument(help="A table of all tasks, or a TOML file.", metavar="FILE")],
    task: Annotated[str | None, typer.Option(help="Of a table: the column that says which task a row is of.")] = None,
    target: Annotated[str | None, typer.Option(help="Of a table: the column to predict.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="ridge, lasso, elastic_net, hinge or logistic; default ridge, or logistic for two classes."),
    ] = None,
    low: Annotated[float | None, typer.Option(help="The range of the hyperparameter; default by the model.")] = None,
    high: Annotated[float | None, typer.Option(help="Its other end.")] = None,
    folds: Annotated[int, typer.Option(help="Of every task, drawn at random; in time with --order.")] = 5,
    order: Annotated[
        str | None, typer.Option(help="The column that rows follow each other by: each fold is judged by those before.")
    ] = None,
    weight: Annotated[
        str | None, typer.Option(help='What tasks weigh in the mean: "rows", or a column; default all the same.')
    ] = None,
    row_weight: Annotated[
        str | None, typer.Option(help="A column that says what rows weigh within their task; default all the same.")
    ] = None,
    width: Annotated[
        float | None, typer.Option("--range", help="H, known beforehand, to clip losses at: for a guarantee.")
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="Also draw the duals, to this PNG, PDF or SVG file.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the answer as JSON to this file.")] = None,
    cluster: Annotated[
        str | None,
        typer.Option(envvar="DASK_SCHEDULER", help="The address of a Dask scheduler, whose workers solve the tasks."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Find the hyperparameter with the smallest mean loss over all tasks, with its guarantee."""
    with _one_line():
        of_table = {"task": task, "target": target, "model": model, "low": low, "high": high, "order": order}
        of_table |= {"weight": weight, "row_weight": row_weight, "width": width, "folds": folds}
        if file.suffix == ".toml":
            given = [name for name, value in of_table.items() if value is not None and (name, value) != ("folds", 5)]
            if given:
                option = given[0].replace("width", "range").replace("_", "-")
                raise ValueError(f"--{option} must be left out beside a TOML file, which says it")
            settings = load_settings(file)
        else:
            settings = settings_for(file, **of_table)
        found, optimum = _optimum(settings, file.parent, quiet, cluster)
        for note in found.read.notes:
            typer.echo(note)
        typer.echo(f"tasks: {len(optimum.duals)}, model: {settings.model.kind}")
        if found.read.classes:
            typer.echo(f"classes: {found.read.classes[0]} (-1) and {found.read.classes[1]} (+1)")
        reasons = found.reasons
        for reason in [*reasons, *(f"task {name}: its loss is not known to set_aside" for name in optimum.set_aside)]:
            typer.echo(f"set aside: {reason}")
        typer.echo(f"hyper: {optimum.hyper:.8g}")
        typer.echo(f"the same in scikit-learn: {SAME_AS[settings.model.kind]}")
        typer.echo(f"mean loss: {optimum.value:.8g}, least possible >= {optimum.lower:.8g}")
        typer.echo(f"certificate: {optimum.certificate!r}")
        if optimum.message:
            typer.echo(optimum.message)
        if optimum.loose:
            typer.echo(f"widened most by: {', '.join(optimum.loose)} (set_aside = RADIUS in the file leaves such out)")
        near = ", ".join(f"[{a:.6g}, {b:.6g}]" for a, b in optimum.epsilon_set)
        typer.echo(f"within {optimum.epsilon:.4g} of the least: {near}")
        regrets = optimum.regrets()[1]
        worst = int(np.argmax(regrets))
        typer.echo(
            f"cost of sharing it, at most: mean {np.mean(regrets):.4g}, largest {regrets[worst]:.4g} "
            f"(task {optimum.names[worst]})"
        )
        answer: dict[str, Any] = {
            "hyper": optimum.hyper,
            "mean_loss": optimum.value,
            "lower": optimum.lower,
            "upper": optimum.upper,
            "epsilon": optimum.epsilon,
            "epsilon_set": optimum.epsilon_set.tolist(),
            "model": settings.model.kind,
            "tasks": list(optimum.names),
            "set_aside": [*reasons, *optimum.set_aside],
            "task_optima": [extremum.hyper for extremum in optimum.task_optima],
            "certificate": {"kind": optimum.certificate.kind, "bound": float(optimum.certificate.bound)},
        }
        if settings.guarantee is not None:
            answer["guarantees"] = _guarantees(settings, optimum)
        if out is not None:
            _write(out, lambda: out.write_text(json.dumps(answer, indent=1) + "\n"))
        if picture is not None:
            _draw(optimum, settings, picture)


def _guarantees(settings: Settings, optimum: GlobalOptimum) -> dict[str, Any]:
    assert settings.guarantee is not None
    given: dict[str, Any] = {}
    functions: Any = optimum.duals
    width, delta, key = settings.guarantee.range, settings.guarantee.delta, jax.random.key(settings.guarantee.seed)
    clipped = sum(f.maximise().upper >= width for f in functions)
    typer.echo(f"losses clipped at {width:g}, on {clipped} of {len(functions)} tasks somewhere in the domain")
    if settings.set_aside is not None:
        typer.echo(f"the guarantees speak of tasks that are known within {settings.set_aside:g}")
    # Each of the two holds with half of delta, so both hold together with 1 - delta.
    for target in ("excess", "deviation"):
        found = gap(
            Bounded(range=width), len(functions), delta / 2, functions, target=target, hyper=optimum.hyper, key=key
        )
        typer.echo(str(found))
        given[target] = {"value": found.value, "name": found.name, "kind": found.kind, "delta": found.delta}
    return given


@app.command("needed")
def needed_command(
    epsilon: Annotated[float, typer.Argument(help="The gap asked for, in units of the loss.")],
    structure: StructureOption = None,
    width: Range = 1.0,
    delta: Delta = 0.05,
    target: TargetOption = "excess",
) -> None:
    """The number of tasks after which the guarantee is at most EPSILON, known before any task is seen."""
    with _one_line():
        structures = parse_structures(structure, width)
        if not structures:
            raise ValueError("needed: give at least one --structure, as lasso-kinks=30")
        typer.echo(str(tasks_needed(structures, epsilon, delta, target=target)))


@app.command("gap")
def gap_command(
    tasks: Annotated[int | None, typer.Argument(help="The number of tasks.")] = None,
    data: Annotated[Path | None, typer.Option(help="The TOML file of tasks, for bounds computed from them.")] = None,
    structure: StructureOption = None,
    width: Annotated[float | None, typer.Option("--range", help="H; by default the file's, or 1.")] = None,
    delta: Annotated[float | None, typer.Option(help="Probability of failure; by default the file's, or 0.05.")] = None,
    target: TargetOption = "excess",
    quiet: Quiet = False,
) -> None:
    """The guarantee for a number of tasks, or for the tasks of a file."""
    with _one_line():
        if (tasks is None) == (data is None):
            raise ValueError("gap: give either a number of tasks or --data FILE.toml")
        if data is None:
            structures = parse_structures(structure, 1.0 if width is None else width)
            if not structures:
                raise ValueError("gap: give at least one --structure, as lasso-kinks=30, or --data FILE.toml")
            level = 0.05 if delta is None else delta
            typer.echo(str(gap(structures, tasks or 0, level, target=target)))
            return
        settings = load_settings(data)
        if settings.guarantee is None:
            raise ValueError(f"{data}: [guarantee] must be there with the range of the loss; it is missing")
        if width is not None and width != settings.guarantee.range:
            raise ValueError("gap: the range of the loss is set in the file; --range must not differ from it")
        limit = settings.guarantee.range
        level = settings.guarantee.delta if delta is None else delta
        found = duals_of(settings, data.parent, not quiet)
        duals = found.duals
        for reason in found.reasons:
            typer.echo(f"set aside: {reason}")
        known = [Bounded(range=limit), *parse_structures(structure, limit)]
        key = jax.random.key(settings.guarantee.seed)
        typer.echo(str(gap(known, len(duals), level, duals, target=target, key=key)))


@app.command("plot")
def plot_command(
    file: SettingsFile,
    picture: Annotated[Path, typer.Argument(help="The PNG, PDF or SVG file to write.")],
    quiet: Quiet = False,
) -> None:
    """The dual functions of all tasks, their mean, and the optimum with its epsilon-optimal set."""
    with _one_line():
        settings = load_settings(file)
        _, optimum = _optimum(settings, file.parent, quiet)
        _draw(optimum, settings, picture)


def _draw(optimum: GlobalOptimum, settings: Settings, picture: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    optimum.plot(figure.add_subplot(), xlabel=f"penalty of {settings.model.kind.replace('_', ' ')}")
    _write(picture, lambda: figure.savefig(picture, dpi=160))
    typer.echo(f"picture: {picture}")


def _write(path: Path, write: Callable[[], Any]) -> None:
    try:
        write()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
