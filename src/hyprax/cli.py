"""The command line: `hyprax tune`, `hyprax show`, `hyprax report`.

Everything heavy is imported inside the commands, so that help and errors come at once.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

BAD_INPUT, INTERRUPTED = 2, 130

app = typer.Typer(
    name="hyprax",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Hyperparameters tuned by gradient, with a certificate on every answer.",
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"hyprax {version('hyprax')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


@app.command()
def tune(
    recipe: Annotated[Path, typer.Argument(help="A TOML file: data, model, what to tune, how.")],
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a key of the recipe; may be repeated.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder of the run; default runs/NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that the folder holds.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar, no table.")] = False,
) -> None:
    """Tune what a recipe names, record the run, and write its report."""
    import jax

    jax.config.update("jax_enable_x64", True)  # certificates of kind `certified` need float64
    from . import recipes, report
    from ._result import result_name
    from .runs import Run

    job = recipes.prepare(recipe, setting or ())
    folder = Path("runs") / recipe.stem if out is None else out
    run = Run(folder, config=job.config, resume=resume)
    say = (lambda _: None) if quiet else _console(stderr=True).print
    try:
        outcome = recipes.carry_out(job, run, progress=not quiet, say=say)
    except KeyboardInterrupt:
        typer.echo(f"interrupted; to go on: hyprax tune {recipe} --out {folder} --resume", err=True)
        raise typer.Exit(INTERRUPTED) from None
    page = report.write(folder)
    if not quiet:
        _print_comparison(
            [dict(zip(recipes.table_header(outcome), row, strict=True)) for row in recipes.table_rows(outcome)]
        )
        typer.echo(f"{result_name(outcome.tuned.result)}: {outcome.tuned.message}".rstrip(": "))
        typer.echo(f"report: {page}")
    if result_name(outcome.tuned.result) == "diverged":
        if quiet:
            typer.echo(f"{folder}: {outcome.tuned.message}", err=True)
        raise typer.Exit(1)


@app.command()
def show(folder: Annotated[Path, typer.Argument(help="The folder of a run.")]) -> None:
    """Print what a run asked, where it stands and how it ended."""
    import numpy as np

    from .runs import read

    record = read(folder)
    last = record.history[-1] if record.history else {}
    rows = [
        ("state", record.summary.get("result", "not finished")),
        ("steps", str(len(record.history))),
        ("seconds", f"{np.nansum(record.column('seconds')):.2f}"),
        ("best value", f"{record.summary.get('best_value', np.nan):.6g}"),
        ("last value", f"{last.get('value', np.nan):.6g}"),
        ("last gradient norm", f"{last.get('gradient_norm', np.nan):.3g}"),
        ("certificate", f"{last.get('certificate_kind', '–')}, bound {last.get('certificate_bound', np.nan):.3g}"),
        *((f"{name} (best)", _describe(values)) for name, values in record.best.items()),
    ]
    _print_table(str(folder), ("", ""), rows)
    for table in record.summary.get("tables", []):
        _print_comparison(table["rows"])
    if "message" in record.summary:
        typer.echo(record.summary["message"])


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="The folder of a run.")]) -> None:
    """Write the report of a run again: one HTML page, in its folder."""
    from . import report as pages

    typer.echo(str(pages.write(folder)))


def _describe(values: Any) -> str:
    if values.size == 1:
        return f"{values.item():.4g}"
    return f"{list(values.shape)}, {values.min():.3g} to {values.max():.3g}"


def _console(*, stderr: bool = False) -> Any:
    from rich.console import Console

    return Console(stderr=stderr, soft_wrap=True, highlight=False)


def _print_comparison(contestants: list[dict[str, str]]) -> None:
    """One column a contestant: their names are long, and terminals narrow."""
    if contestants:
        name, *measures = contestants[0]
        rows = [(measure, *(contestant[measure] for contestant in contestants)) for measure in measures]
        _print_table("", (name, *(contestant[name] for contestant in contestants)), rows)


def _print_table(title: str, header: Any, rows: Any) -> None:
    from rich.table import Table

    table = Table(title=title or None, show_header=any(header))
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 or not any(header) else "right")
    for row in rows:
        table.add_row(*row)
    _console().print(table)


def main() -> None:
    """The entry point: bad input is one line and exit status 2, never a traceback."""
    try:
        app()
    except ValueError as error:
        known = ("RecipeError", "RunError", "StateError", "HistoryError")
        if type(error).__name__ not in known:
            raise
        sys.stderr.write(f"{error}\n")
        raise SystemExit(BAD_INPUT) from None
