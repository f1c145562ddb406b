"""The commands.

Everything heavy is imported inside the commands, so that help and errors come at once.
"""

import contextlib
import math
import os
import re
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from .._text import escaped

TABLES = re.compile(r"\.((csv|tsv|tab|txt)(\.gz)?|parquet)$", re.IGNORECASE)
FAILED, BAD_INPUT, INTERRUPTED, TERMINATED = 1, 2, 130, 143

app = typer.Typer(
    name="hyprax",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help="Hyperparameters tuned by gradient, with a certificate on every answer.",
)


def _version(asked: bool | None) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"hyprax {version('hyprax')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool | None, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = None,
) -> None:
    pass


Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a key of the recipe; may be repeated.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar, no table.")]
Cache = Annotated[bool, typer.Option("--cache/--no-cache", help="Keep compiled programs for the next run.")]
Log = Annotated[
    list[str] | None,
    typer.Option("--log", metavar="NAME", help="Log steps in the folder: csv, jsonl, tensorboard, mlflow, wandb."),
]
Target = Annotated[str | None, typer.Option(help="Of a table: the column to predict.")]
Exposure = Annotated[
    str | None, typer.Option(help="Of a table whose target is counted: the column of how long or how much of.")
]
Assume = Annotated[bool, typer.Option("--assume", help="Take what was guessed of a table, the doubtful too.")]


@app.command()
def tune(
    recipe: Annotated[
        Path, typer.Argument(help="A TOML file: data, model, what to tune, how; or a table (CSV, Parquet).")
    ],
    setting: Settings = None,
    target: Target = None,
    exposure: Exposure = None,
    assume: Assume = False,
    out: Annotated[Path | None, typer.Option(help="The folder of the run; default runs/NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that the folder holds.")] = False,
    log: Log = None,
    quiet: Quiet = False,
    cache: Cache = True,
) -> None:
    """Tune the hyperparameters that a recipe lists, record the run, write its report, and save the model."""
    folder = Path("runs") / recipe.name.split(".")[0] if out is None else out
    settings = setting or []
    of_table = {"target": target, "exposure": exposure}
    words = [str(recipe), *(f"--{key}={name}" for key, name in of_table.items() if name is not None)]
    words += [f"--set={text}" for text in settings]
    words += [f"--log={name}" for name in log or []] + ["--assume"] * assume
    again = ["hyprax", "tune", *words, f"--out={folder}", "--resume"]

    def made(say: Callable[[str], None]) -> Any:
        from .. import recipes
        from ..runs import Run

        callbacks = _loggers(log, folder)
        job = _prepared(recipe, of_table, settings, assume)
        run = Run(folder, config=job.config, about=job.about, resume=resume)
        for note in () if job.splits is None else job.splits.notes:
            say(note)
        return recipes.carry_out(job, run, progress=not quiet, say=say, callbacks=callbacks)

    _watched(made, folder, again, quiet=quiet, cache=cache)


@app.command("resume")
def resume_run(
    folder: Annotated[Path, typer.Argument(help="The folder of a run that was interrupted, or may make more steps.")],
    setting: Settings = None,
    log: Log = None,
    quiet: Quiet = False,
    cache: Cache = True,
) -> None:
    """Go on with the run of a recipe, from its own record, to the bits of one that was never interrupted."""

    def made(say: Callable[[str], None]) -> Any:
        from ._resume import resume

        callbacks = _loggers(log, folder)
        return resume(folder, setting or [], progress=not quiet, say=say, callbacks=callbacks)

    again = ["hyprax", "resume", str(folder), *(f"--set={text}" for text in setting or [])]
    again += [f"--log={name}" for name in log or []]
    _watched(made, folder, again, quiet=quiet, cache=cache)


@app.command()
def init(
    table: Annotated[
        Path, typer.Argument(help="A table (CSV of any dialect and encoding, gzipped or not, or Parquet).")
    ],
    target: Target = None,
    exposure: Exposure = None,
    out: Annotated[Path | None, typer.Option(help="The recipe; default NAME.toml beside the table.")] = None,
) -> None:
    """Look at a table, and write a recipe for it: what each column was taken for, as keys to change."""
    from ..recipes._guess import recipe_for

    path = table.with_name(f"{table.name.split('.')[0]}.toml") if out is None else out
    if path.exists():
        _say(f"{path}: must be a new file; it is there already (--out names another)", err=True)
        raise typer.Exit(BAD_INPUT)
    source = os.path.relpath(table, path.parent)
    path.write_text(recipe_for(table, target, source, exposure), encoding="utf-8")
    _say(f"{path}: look at it, then: {shlex.join(['hyprax', 'tune', str(path)])}")


@app.command()
def predict(
    folder: Annotated[Path, typer.Argument(help="The folder of a run of a linear model.")],
    table: Annotated[Path, typer.Argument(help="A table with the columns that the model was trained on.")],
    out: Annotated[Path | None, typer.Option(help="Where to write; default the terminal.")] = None,
) -> None:
    """Predict the rows of a table by the model of a run: a CSV of predictions, and of probabilities for classes."""
    import csv
    import io

    from ..recipes import load

    model = load(folder)
    found, chances = model.predict(table), model.predict_proba(table) if model.classes else None
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([model.target, *(f"P({name})" for name in model.classes)])
    for row, value in enumerate(found.tolist()):
        writer.writerow([value, *([] if chances is None else [f"{x:.6g}" for x in chances[row]])])
    _written(stream.getvalue(), out)


def _prepared(recipe: Path, of_table: dict[str, str | None], settings: Sequence[str], assume: bool) -> Any:
    """The job of a recipe, or of a table by itself."""
    from ..recipes import RecipeError, prepare
    from ..recipes._build import prepare_table

    if recipe.suffix == ".toml" or (of_table["target"] is None and not TABLES.search(recipe.name)):
        for key, name in of_table.items():
            if name is not None:
                raise RecipeError(f"must be left out for a recipe, which names it (data.{key})", key=f"--{key}")
        return prepare(recipe, [*settings, *(["data.assume=true"] if assume else [])])
    return prepare_table(recipe, of_table["target"], settings, exposure=of_table["exposure"], assume=assume)


def _loggers(names: Sequence[str] | None, folder: Path) -> list[Any]:
    """The loggers asked for; bad input where one is not known, or not installed."""
    from ..callbacks._named import named

    try:
        return [named(name, folder) for name in names or ()]
    except (ValueError, ModuleNotFoundError) as error:
        _say(f"hyprax: --log: {error}", err=True)
        raise typer.Exit(BAD_INPUT) from None


def _watched(
    made: Callable[[Callable[[str], None]], Any], folder: Path, again: Sequence[str], *, quiet: bool, cache: bool
) -> None:
    """Carry a job out; a signal ends it between two steps, and a line says how to go on."""
    from .._interrupt import Terminated, terminate

    main = threading.current_thread() is threading.main_thread()
    usual = signal.signal(signal.SIGTERM, terminate) if main else None
    try:
        _carried_out(made, folder, quiet=quiet, cache=cache)
    except KeyboardInterrupt as caught:
        asked = isinstance(caught, Terminated)
        _say(f"{'terminated' if asked else 'interrupted'}; to go on: {shlex.join(again)}", err=True)
        raise typer.Exit(TERMINATED if asked else INTERRUPTED) from None
    finally:
        if main:
            signal.signal(signal.SIGTERM, usual)


def _carried_out(made: Callable[[Callable[[str], None]], Any], folder: Path, *, quiet: bool, cache: bool) -> None:
    import jax

    jax.config.update("jax_enable_x64", True)  # certificates of kind `certified` need float64
    named = getattr(jax.config, "jax_compilation_cache_dir", None)  # by a variable of the environment
    if cache and not named:
        jax.config.update("jax_compilation_cache_dir", str(_cache_folder()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    from .. import report
    from .._result import result_name
    from ..recipes._outcome import table_header, table_rows

    say = (lambda _: None) if quiet else (lambda text: _console(stderr=True).print(escaped(text)))
    with _warnings_in_one_line():
        outcome = made(say)
    page = report.write(folder)
    name, tuned = result_name(outcome.tuned.result), outcome.tuned
    ending = f"{name}: {outcome.message}".rstrip(": ")
    if not quiet:
        if outcome.judgement is not None:
            _print_judgement(outcome.judgement.table, outcome.judgement.gain.meaning(), outcome.judgement.warnings)
        header = table_header(outcome)
        _print_comparison([dict(zip(header, row, strict=True)) for row in table_rows(outcome)])
        for table in outcome.tables:
            _print_rows(table)
        _say(f"report: {page}")
        if outcome.judgement is not None:
            _say(f"model: {shlex.join(['hyprax', 'predict', str(folder), 'NEW.csv'])}")
    if math.isinf(tuned.best_value):
        _say(f"{folder}: no step was as accurate as asked, so nothing was found. {ending}", err=True)
        raise typer.Exit(FAILED)
    if name == "diverged":
        _say(f"{folder}: {ending}", err=True)
        raise typer.Exit(FAILED)
    if not quiet:
        _say(ending)


def _cache_folder() -> Path:
    """Where this user's programs keep what they can make again."""
    usual = {"darwin": "~/Library/Caches", "win32": os.environ.get("LOCALAPPDATA", "~/AppData/Local")}
    base = os.environ.get("XDG_CACHE_HOME") or usual.get(sys.platform, "~/.cache")
    return Path(base).expanduser() / "hyprax" / "jax"


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def tasks(context: typer.Context) -> None:
    """One hyperparameter for many tasks: tune, needed, gap, plot."""
    from ..recipes._tasks_cli import app as tasks_app  # imported when it is asked for

    tasks_app(args=context.args, prog_name="hyprax tasks")


@app.command()
def show(folder: Annotated[Path, typer.Argument(help="The folder of a run.")]) -> None:
    """Print what a run asked, where it stands and how it ended."""
    import numpy as np

    from ..runs import read

    record = read(folder)
    last = record.history[-1] if record.history else {}
    accurate = [row["value"] for row in record.history if row["result"] == "successful"]
    best = record.summary.get("best_value", min(accurate, default=np.nan))
    bound, kind = last.get("certificate_bound", np.nan), last.get("certificate_kind", "–")
    rows = [
        ("state", record.summary.get("result", "not finished")),
        ("steps", str(len(record.history))),
        ("seconds", f"{np.nansum(record.column('seconds')):.2f}"),
        ("best value", _number(best, ".6g")),
        ("last value", _number(last.get("value", np.nan), ".6g")),
        ("last gradient norm", _number(last.get("gradient_norm", np.nan), ".3g")),
        ("certificate", f"{kind}, bound {bound:.3g}" if math.isfinite(bound) else kind),
        *((f"{name} (best)", _describe(values)) for name, values in record.best.items()),
    ]
    _print_table(str(folder), ("", ""), rows)
    for table in record.summary.get("tables", []):
        if table["title"] == "Comparison":
            _print_comparison(table["rows"])
        elif "gain" in record.summary and table is record.summary["tables"][0]:
            _print_judgement(table, record.summary["gain"], record.summary.get("warnings", []))
        else:
            _print_rows(table)
    if "message" in record.summary:
        _say(record.summary["message"])


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="The folder of a run.")]) -> None:
    """Write the report of a run again: one HTML page, in its folder."""
    from .. import report as pages

    _say(str(pages.write(folder)))


@app.command()
def compare(folders: Annotated[list[Path], typer.Argument(help="The folders of two runs or more.")]) -> None:
    """Print runs beside each other: how they ended, their values, what their models are worth on the test rows."""
    from ._looking import compared

    rows, said = compared(folders)
    _print_comparison(rows)
    for text in said:
        _say(text, err=True)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="The folder of a run of a linear model.")],
    out: Annotated[Path | None, typer.Option(help="Where to write; default the terminal.")] = None,
) -> None:
    """Write the weights of a linear model as a CSV, in the units of the table."""
    from ..recipes import load
    from ._looking import weights_as_csv

    _written(weights_as_csv(load(folder)), out)


@app.command()
def watch(
    folder: Annotated[Path, typer.Argument(help="The folder of a run, also of one that goes on.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the loopback; 0 takes a free one.")] = 8000,
) -> None:
    """Show the report of a run in a browser as the run goes: a page on the loopback that renews itself."""
    from ._looking import serve

    with contextlib.suppress(KeyboardInterrupt):
        serve(folder, port, _say)


def _written(text: str, out: Path | None) -> None:
    if out is None:
        typer.echo("\n".join(map(escaped, text.splitlines())))
    else:
        out.write_text(text, encoding="utf-8")
        _say(f"{out}: {len(text.splitlines()) - 1} rows")


def _say(text: str, *, err: bool = False) -> None:
    typer.echo(escaped(text), err=err)


def _number(value: float, form: str) -> str:
    return "–" if math.isnan(value) else format(value, form)


def _describe(values: Any) -> str:
    if values.size == 1:
        return f"{values.item():.4g}"
    return f"{list(values.shape)}, {values.min():.3g} to {values.max():.3g}"


def _console(*, stderr: bool = False) -> Any:
    """A console that prints texts as they are: names of classes and folders may have brackets and colons in them."""
    from rich.console import Console

    return Console(stderr=stderr, soft_wrap=True, highlight=False, markup=False, emoji=False)


def _print_comparison(contestants: list[dict[str, str]]) -> None:
    """One column a contestant: their names are long, and terminals narrow."""
    if contestants:
        name, *measures = contestants[0]
        rows = [(measure, *(contestant[measure] for contestant in contestants)) for measure in measures]
        _print_table("", (name, *(contestant[name] for contestant in contestants)), rows)


def _print_judgement(table: dict[str, Any], gain: str, warned: Sequence[str]) -> None:
    """The models on the test rows, what tuning gained there, and what to know before trusting it."""
    _print_rows(table)
    for text in (gain, *warned):
        _say(text)


def _print_rows(table: dict[str, Any]) -> None:
    """A table with a row for each entry; a single row stands on its side."""
    rows = table["rows"]
    if len(rows) == 1:
        _print_table(table["title"], ("", ""), list(rows[0].items()))
    elif rows:
        _print_table(table["title"], tuple(rows[0]), [tuple(row.values()) for row in rows])


def _print_table(title: str, header: Any, rows: Any) -> None:
    from rich.table import Table

    table = Table(title=escaped(title) or None, show_header=any(header))
    for i, name in enumerate(header):
        table.add_column(escaped(name), justify="left" if i == 0 or not any(header) else "right")
    for row in rows:
        table.add_row(*map(escaped, row))
    _console().print(table)


@contextlib.contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """A step that fell short is told of as it happens, without the place in the code that Python adds."""
    from ..search import TuningWarning

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        _say(f"warning: {message}", err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("always", TuningWarning)
        warnings.showwarning = show
        yield


def run(arguments: Sequence[str] | None = None) -> None:
    """Run a command: bad input is one line and exit status 2, never a traceback."""
    try:
        app(args=arguments, prog_name="hyprax")
    except (ValueError, OSError) as error:
        from ..recipes import RecipeError
        from ..runs import RunError

        if not isinstance(error, RecipeError | RunError | OSError):
            raise
        text = str(error)
        if isinstance(error, OSError) and error.strerror:
            text = f"{str(error.filename or 'hyprax')[:200]}: {error.strerror}"
        _say(" ".join(text.split()), err=True)
        raise SystemExit(BAD_INPUT) from None
