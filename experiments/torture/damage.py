"""Records that are damaged: each command says so in one line, or does as if nothing had happened."""

import contextlib
import io
import json
import random
import shutil
import sqlite3
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hyprax.cli import main

from . import runs
from .kills import fingerprint, references


def _flip(path: Path, draw: random.Random) -> None:
    raw = bytearray(path.read_bytes())
    if raw:
        raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
    path.write_bytes(raw)


def _other(value: Any, draw: random.Random) -> Any:
    """A JSON value with one thing in it of another kind."""
    if isinstance(value, dict) and value and draw.random() < 0.8:
        name = draw.choice(list(value))
        return value | {name: _other(value[name], draw)}
    if isinstance(value, list) and value and draw.random() < 0.8:
        return [_other(value[0], draw), *value[1:]]
    return draw.choice([None, [], {}, -1, 1e308, "x" * 5000, "\x1b[31m", float("nan"), [[[]]], True, 2**70])


def _json(path: Path, draw: random.Random) -> None:
    if path.suffix == ".sqlite":
        return _row(path, draw)
    if path.suffix != ".json":
        return _flip(path, draw)
    return path.write_text(json.dumps(_other(json.loads(path.read_text()), draw))) and None


def _row(path: Path, draw: random.Random) -> None:
    """A history with one number, or one row, that is another: as somebody would write it by hand."""
    step = draw.randrange(runs.STEPS)
    changes = [f"SET {name} = {name} * 1.01" for name in ("value", "gradient_norm", "seconds")]
    changes += ["SET result = 'diverged'", "SET stats = '{}'"]
    statement = draw.choice([*(f"UPDATE steps {change}" for change in changes), "DELETE FROM steps"])
    connection = sqlite3.connect(path)
    connection.execute(f"{statement} WHERE step = ?", [step])
    connection.commit()
    connection.close()


def _swap(path: Path, draw: random.Random) -> None:
    shutil.copy(draw.choice([p for p in path.parent.iterdir() if p.is_file()]), path.parent / "swapped")
    (path.parent / "swapped").replace(path)


MUTATIONS: dict[str, Callable[[Path, random.Random], Any]] = {
    "cut": lambda path, draw: path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size + 1)]),
    "bit": _flip,
    "empty": lambda path, draw: path.write_bytes(b""),
    "deleted": lambda path, draw: path.unlink(),
    "garbage": lambda path, draw: path.write_bytes(draw.randbytes(draw.choice([1, 100, 10_000]))),
    "value": _json,
    "swapped": _swap,
    "folder": lambda path, draw: (path.unlink(), path.mkdir()),
}


def _command(arguments: list[str]) -> str | None:
    """What is wrong with how a command ended, if anything."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            main(arguments)
    except SystemExit as ended:
        code, text = ended.code or 0, said.getvalue()
        if code not in (0, 1, 2):
            return f"exit status {code}"
        if "Traceback" in text or "\x1b[31m" in text:
            return f"said {text[-300:]!r}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    return None


def damage(count: int, batch: str, out: Path) -> tuple[Counter[str], list[str]]:
    """`count` mutations of finished runs: `show`, `report`, and going on for more steps."""
    draw, known = random.Random(f"damage {batch}"), references(out)
    happened: Counter[str] = Counter()
    wrong: list[str] = []
    for i in range(count):
        name = draw.choice(list(known))
        folder = out / f"damaged {batch} {i}"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(out / f"whole {name}", folder)
        path = draw.choice(sorted(p for p in folder.iterdir() if p.is_file()))
        mutation = draw.choice(list(MUTATIONS))
        MUTATIONS[mutation](path, draw)
        where = f"{name}: {path.name}, {mutation} ({folder})"
        before = len(wrong)
        for command in ("show", "report"):
            if problem := _command([command, str(folder)]):
                wrong.append(f"{command} of {where}: {problem}")
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                runs.carry_out(name, folder, 0.0)
            found, whole = fingerprint(folder), known[name].fingerprint
            if any(found[part] != whole[part] for part in ("best", "state", "rows")) and not told:
                wrong.append(f"going on with {where}: other bits, and not a word")
            happened["went on"] += 1
        except runs.NAMED:
            happened["refused by name"] += 1
        except Exception as error:
            wrong.append(f"going on with {where}: {type(error).__name__}: {str(error)[:200]}")
        if len(wrong) == before:
            shutil.rmtree(folder)
    return happened, wrong
