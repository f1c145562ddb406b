"""Input that nobody expects: recipes, tables and archives made at random are taken, or refused in one sentence."""

import io
import random
import resource
import signal
import tempfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hyprax.recipes import RecipeError, prepare

SECONDS, HANGS, MEMORY = 20, 600, 8 << 30
"""For one input, far more than any needs: seconds of the processor, of the clock, bytes. A busy machine is no fault."""
TEXTS = (
    "",
    "a",
    "é",
    "\x1b[2J",
    '"',
    '""',
    "'",
    "x" * 3000,
    "$HOME",
    "~/x",
    "../..",
    "nan",
    "inf",
    "None",
    "日本",
    "\\",
    "\x00",
)
NUMBERS = (0, -1, 1, 2.5, 1e308, -1e-320, float("nan"), float("inf"), 10**18, 10**400, 0.1)


def _value(draw: random.Random, depth: int = 0) -> str:
    """A value of TOML, or nearly one."""
    kind = draw.randrange(8 if depth < 4 else 5)
    if kind == 0:
        return '"' + draw.choice(TEXTS).replace("\\", "\\\\").replace('"', '\\"') + '"'
    if kind in (1, 2):
        return str(draw.choice(NUMBERS))
    if kind == 3:
        return draw.choice(["true", "false", "2020-01-01", "1_0", "0x1F", "'lit'", "12:00:00", "--"])
    if kind == 4:
        return draw.choice(["[" * 300 + "]" * 300, "[]", "{}", '"' + "y" * 10_000 + '"'])
    inner = ", ".join(_value(draw, depth + 1) for _ in range(draw.randrange(4)))
    return f"[{inner}]" if kind < 7 else "{" + f"k = {_value(draw, depth + 1)}" + "}"


def recipe(draw: random.Random, folder: Path, templates: list[str]) -> Path:
    """A recipe that works, with some of its lines changed, doubled, cut or swapped."""
    lines = draw.choice(templates).splitlines()
    for _ in range(draw.randint(1, 4)):
        i = draw.randrange(len(lines))
        action = draw.randrange(6)
        if action < 3 and "=" in lines[i]:
            lines[i] = f"{lines[i].split('=')[0]}= {_value(draw)}"
        elif action == 3:
            lines.insert(draw.randrange(len(lines)), lines[i])
        elif action == 4:
            del lines[i]
            lines = lines or [""]
        else:
            at = draw.randrange(len(lines[i]) + 1)
            lines[i] = lines[i][:at] + draw.choice(TEXTS) + lines[i][at:]
    path = folder / "recipe.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


TABLE = """
[data]
source = "{kind}"
path = "{path}"
target = "y"
[model]
kind = "{model}"
[hyper.penalty]
shape = "{shape}"
"""


def table(draw: random.Random, folder: Path) -> Path:
    """A CSV file of any manners."""
    comma, end = draw.choice([",", ";", "\t", "|"]), draw.choice(["\n", "\r\n", "\r"])
    columns = draw.randint(1, 6)
    names = [draw.choice([f"x{i}", "y", "", "a b", *TEXTS[:6]]) for i in range(columns)]
    if draw.random() < 0.9:
        names[-1] = "y"
    cells = [lambda: f"{draw.gauss(0, 1):.3g}", lambda: str(draw.randrange(3)), lambda: draw.choice(TEXTS), lambda: ""]
    kinds = [draw.choices(cells, [6, 3, 1, 1])[0] for _ in names]
    rows = [
        [(draw.choice(cells) if draw.random() < 0.02 else kind)() for kind in kinds][: draw.choice([None] * 30 + [1])]
        for _ in range(draw.choice([0, 1, 3, 30, 60]))
    ]
    lines = [names, *rows] if draw.random() < 0.95 else rows
    text = end.join(comma.join(row) for row in lines) + draw.choice(["", end, end * 3])
    raw = text.encode(draw.choice(["utf-8", "utf-8", "utf-8-sig", "latin-1", "utf-16"]), errors="replace")
    if draw.random() < 0.05:
        raw = raw[: draw.randrange(len(raw) + 1)] + draw.randbytes(3)
    (folder / "table.csv").write_bytes(raw)
    return _recipe(draw, folder, "csv", "table.csv")


def archive(draw: random.Random, folder: Path) -> Path:
    """An npz file, whole or not."""
    arrays: dict[str, Any] = {
        "X": np.asarray([[draw.gauss(0, 1) for _ in range(3)] for _ in range(20)]),
        "y": np.asarray([draw.randrange(2) for _ in range(20)]),
    }
    odd = [np.zeros((0, 3)), np.asarray("x"), np.asarray([1 + 2j]), np.full((3, 2), np.nan), np.zeros((2, 2, 2)),
           np.asarray([2**63 - 1] * 20), np.ones(20, bool), np.ones((20, 1), np.float16)]  # fmt: skip
    if draw.random() < 0.6:
        arrays[draw.choice(["X", "y", "z"])] = draw.choice(odd)
    whole = io.BytesIO()
    np.savez(whole, **arrays)
    raw = bytearray(whole.getvalue())
    if draw.random() < 0.5:
        for _ in range(draw.randint(1, 5)):
            raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
    if draw.random() < 0.1:
        raw = raw[: draw.randrange(len(raw))]
    path = folder / "table.npz"
    path.write_bytes(raw)
    if draw.random() < 0.05:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
            bomb.writestr("X.npy", b"\0" * (1 << 22))
    return _recipe(draw, folder, "npz", "table.npz")


def _recipe(draw: random.Random, folder: Path, kind: str, name: str) -> Path:
    path = folder / "recipe.toml"
    model = draw.choice(["ridge", "logistic", "softmax"])
    text = TABLE.format(kind=kind, path=name, model=model, shape=draw.choice(["scalar", "feature"]))
    path.write_text(text if kind == "csv" else text.replace('target = "y"\n', ""))
    return path


def _too_long(*_: Any) -> None:
    raise TimeoutError(f"took more than {SECONDS} s of the processor, or {HANGS} s")


def fuzz(count: int, batch: str, out: Path) -> tuple[Counter[str], list[str]]:
    """`count` inputs, each with a limit of time, all with one of memory."""
    draw = random.Random(f"inputs {batch}")
    templates = [path.read_text() for path in sorted(Path("examples").glob("*.toml")) if path.stem != "custom"]
    happened: Counter[str] = Counter()
    wrong: list[str] = []
    limit = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, limit[1]))
    usual = {number: signal.signal(number, _too_long) for number in (signal.SIGALRM, signal.SIGPROF)}
    try:
        with tempfile.TemporaryDirectory(dir=out) as made:
            folder = Path(made)
            for i in range(count):
                maker = draw.choice(["table", "table", "archive", "recipe"])
                state = draw.getstate()
                if maker == "recipe":
                    path = recipe(draw, folder, templates)
                else:
                    path = {"table": table, "archive": archive}[maker](draw, folder)
                signal.alarm(HANGS)
                signal.setitimer(signal.ITIMER_PROF, SECONDS)
                try:
                    prepare(path)
                    happened["taken"] += 1
                except RecipeError as error:
                    happened["refused in a sentence"] += 1
                    if len(str(error)) > 2000 or "\x1b" in str(error):
                        wrong.append(f"{maker} {i}: a message of {len(str(error))} characters, or with an escape in it")
                except Exception as error:
                    wrong.append(f"{maker} {i} of batch {batch}: {type(error).__name__}: {str(error)[:200]}")
                    kept = out / f"input {batch} {i}"
                    kept.mkdir(exist_ok=True)
                    for file in folder.iterdir():
                        file.rename(kept / file.name)
                    (kept / "state.txt").write_text(repr(state)[:200])
                finally:
                    signal.alarm(0)
                    signal.setitimer(signal.ITIMER_PROF, 0)
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
        jax.clear_caches()  # every shape has programs of its own
        resource.setrlimit(resource.RLIMIT_AS, limit)
    return happened, wrong
