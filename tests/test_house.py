"""The rules that keep the house in order, read off its source."""

import ast
import fnmatch
import importlib
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import equinox as eqx
import griffe
import pytest
from check_public_names import LATER, counted, load, public_names, table

import hyprax as hx
from costs import COSTLY

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "hyprax"
ENGINES = ("implicit", "unroll", "evidence", "tasks")
KNOW_NO_ENGINE = ("search", "runs", "report")
UPSTAIRS = (*KNOW_NO_ENGINE, "recipes", "cli")
TREES = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}

LOADER, NAMES = (loaded := load())[0], public_names(loaded[1])

# How many public names each part may have: it is lowered when names go, and raised only with a reason.
MOST = {"implicit": 50, "unroll": 30, "evidence": 45, "tasks": 49}
MOST_OF_THE_HOUSE = 197  # never above 200
# 82 by later features, which `LATER` lists: callbacks, studies of Optuna, PyTorch, estimators, saved models, folds,
# holding back, gains, more criteria, optimizers, proofs of runs, likelihoods, several hyperparameters of many tasks.
MOST_IN_ALL = 279
MOST_AT_THE_FRONT_DOOR = 40


def part(path: str) -> str:
    """The part of the package that a module or a name is in: "implicit", "cli", "core"."""
    first = path.removeprefix("hyprax.").replace("/", ".").split(".")[0]
    return "core" if first.startswith("_") else first


def within(*parts: str) -> Iterator[tuple[str, ast.Module]]:
    return ((name, tree) for name, tree in TREES.items() if part(name) in parts)


def test_the_front_door_is_small():
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text())
    names = [alias.name for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert len(names) <= MOST_AT_THE_FRONT_DOOR, names


def test_there_are_not_many_public_names():
    counts = counted(LOADER, NAMES)
    assert {name: sum(counts[name]) for name in MOST if sum(counts[name]) > MOST[name]} == {}, counts
    assert sum(house for house, _ in counts.values()) <= MOST_OF_THE_HOUSE, counts
    assert sum(map(sum, counts.values())) <= MOST_IN_ALL, counts


def test_what_later_features_added_is_public():
    paths = [path for several in NAMES.values() for path in several]
    asked = [f"hyprax.{each}" for several in LATER.values() for each in several]
    assert [each for each in asked if not fnmatch.filter(paths, each)] == []


def test_the_page_on_design_counts_the_names_there_are():
    assert table(counted(LOADER, NAMES)) in (ROOT / "docs/design.md").read_text()


def imports(module: str, tree: ast.Module) -> dict[str, str]:
    """The names that a module imports from the package -> their paths in it: `CG` -> `implicit.CG`."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                folder = module.split("/")[: -node.level]
                path = [*folder, *(node.module or "").split(".")]
            elif (node.module or "").split(".")[0] == "hyprax":
                path = (node.module or "").split(".")[1:]
            else:
                continue
            for alias in node.names:
                found[alias.asname or alias.name] = ".".join(filter(None, [*path, alias.name]))
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "hyprax":
                    found[alias.asname or "hyprax"] = alias.name.removeprefix("hyprax").strip(".")
    return found


@pytest.mark.parametrize("above", KNOW_NO_ENGINE)
def test_searches_records_and_reports_know_no_engine(above):
    known = [f"{module}: {path}" for module, tree in within(above) for path in imports(module, tree).values()]
    assert [name for name in known if part(name.split(": ")[1]) in ENGINES] == []


def asked_types(tree: ast.Module) -> Iterator[tuple[int, ast.expr]]:
    """What a module asks the types of things for: the second argument of `isinstance`, and class patterns."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("isinstance", "issubclass")
        ):
            yield node.lineno, node.args[1]
        elif isinstance(node, ast.MatchClass):
            yield node.cls.lineno, node.cls


def test_nobody_above_the_waist_asks_which_engine_it_is():
    faults = []
    for module, tree in within(*UPSTAIRS):
        from_engines = {name for name, path in imports(module, tree).items() if part(path) in ENGINES}
        for line, asked in asked_types(tree):
            names = {node.id for node in ast.walk(asked) if isinstance(node, ast.Name)}
            attributes = {node.attr for node in ast.walk(asked) if isinstance(node, ast.Attribute)}
            if names & from_engines or attributes & set(ENGINES):
                faults.append(f"{module}:{line}: {ast.unparse(asked)}")
    assert faults == []


# Statistics of other libraries, which are dictionaries there.
FOREIGN_STATISTICS = ("solution.stats['num_steps']", "stats['bytes_limit']")


def test_no_statistic_is_read_by_a_string():
    faults = []
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Subscript):
                holder, key = node.value, node.slice
            elif (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "get"
                and node.args
            ):
                holder, key = node.func.value, node.args[0]
            else:
                continue
            name = (
                holder.attr if isinstance(holder, ast.Attribute) else holder.id if isinstance(holder, ast.Name) else ""
            )
            by_string = isinstance(key, ast.Constant) and isinstance(key.value, str)
            if name == "stats" and by_string and ast.unparse(node) not in FOREIGN_STATISTICS:
                faults.append(f"{module}:{node.lineno}: {ast.unparse(node)}")
    assert faults == []


def texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The strings of a module; those that are put together, with `{}` for each value."""
    parts = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts |= {id(x) for x in node.values}
            yield node.lineno, "".join(str(x.value) if isinstance(x, ast.Constant) else "{}" for x in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.lineno, node.value


@pytest.mark.parametrize("name", ["core", *ENGINES, *UPSTAIRS])
def test_errors_say_what_must_be_and_what_was_given(name):
    old = re.compile(r"\bgiven\b.*\ballowed\b|\ballowed (is|are)\b", flags=re.DOTALL)
    faults = [f"{module}:{line}" for module, tree in within(name) for line, text in texts(tree) if old.search(text)]
    assert faults == []


def test_names_that_messages_give_exist():
    """`hx.implicit.LookAhead` in a message leads somewhere: up to the first that is no module."""

    def leads_nowhere(path: str) -> bool:
        here = hx
        for name in path.split("."):
            if not hasattr(here, name):
                return True
            here = getattr(here, name)
            if not isinstance(here, type(hx)):
                return False
        return False

    for name in ("callbacks", "fits", "optuna", "sklearn", "torch"):
        importlib.import_module(f"hyprax.{name}")
    named = re.compile(r"\bhx\.([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)")
    found = [
        f"{module}:{line}: hx.{path}"
        for module, tree in TREES.items()
        for line, text in texts(tree)
        for path in named.findall(text)
        if leads_nowhere(path)
    ]
    assert found == []


def layers() -> list[type[eqx.Enumeration]]:
    """The core's enumeration of results and those built on it."""
    for name in (*ENGINES, "search", "runs"):
        importlib.import_module(f"hyprax.{name}")

    def below(layer: type[eqx.Enumeration]) -> list[type[eqx.Enumeration]]:
        return [layer, *(found for child in layer.__subclasses__() for found in below(child))]

    return [layer for layer in below(hx.RESULTS) if layer.__module__.startswith("hyprax.")]


def test_every_result_has_a_text_of_its_own():
    texts_of: dict[str, set[str]] = defaultdict(set)
    for layer in layers():
        for name, item in layer._name_to_item.items():
            texts_of[layer[item]].add(name)
    shared = {text: names for text, names in texts_of.items() if len(names) > 1}
    assert shared == {}


def test_the_texts_of_results_are_sentences_for_a_reader():
    faults = []
    for layer in layers():
        for name, item in layer._name_to_item.items():
            text = layer[item]
            sentence = re.fullmatch(r"[A-Z`].*[.!?)]", text, flags=re.DOTALL) and "  " not in text
            if not (text == "" if name == "successful" else sentence):
                faults.append(f"{layer.__module__}.{name}: {text!r}")
    assert faults == []


def annotations(cls: griffe.Class) -> Iterator[griffe.Expr]:
    for member in cls.members.values():
        if member.name.startswith("_") and member.name != "__init__":
            continue
        if isinstance(member, griffe.Function):
            written = [*(argument.annotation for argument in member.parameters), member.returns]
        else:
            written = [member.annotation] if isinstance(member, griffe.Attribute) else []
        yield from (x for x in written if isinstance(x, griffe.Expr))


def classes_of(annotation: griffe.Expr) -> Iterator[griffe.Class]:
    """The classes of this package that an annotation names."""
    for x in annotation.iterate():
        if isinstance(x, griffe.ExprName) and x.canonical_path.startswith("hyprax."):
            try:
                found = LOADER.modules_collection[x.canonical_path]
            except KeyError:
                continue
            found = found.final_target if isinstance(found, griffe.Alias) else found
            if isinstance(found, griffe.Class):
                yield found


# Made and read by the library alone.
OWN = {"TuneState"}


def test_whoever_extends_the_library_finds_the_types_that_abstract_bases_speak_of():
    public = [LOADER.modules_collection[name] for name in NAMES]
    waiting = [cls for cls in public if isinstance(cls, griffe.Class) and cls.name.startswith("Abstract")]
    seen, faults = {cls.path for cls in waiting}, []
    assert len(waiting) > 5
    while waiting:
        cls = waiting.pop()
        for found in (found for annotation in annotations(cls) for found in classes_of(annotation)):
            if found.path not in NAMES and found.name not in OWN:
                faults.append(f"{cls.path} speaks of {found.path}")
            if found.path not in seen:
                seen.add(found.path)
                waiting.append(found)
    assert faults == []


PRODUCTS = ("dot", "vdot", "matmul", "inner", "tensordot", "einsum", "dot_general")
# In NumPy, whose products are at full precision.
PLAIN_PRODUCTS = {"implicit/families/_norms.py", "implicit/_splines.py"}


def test_products_of_the_library_are_at_full_precision():
    """An accelerator multiplies float32 with ten bits unless told otherwise, and a proof counts more."""
    faults = []
    for module, tree in within("core", "implicit", "unroll", "evidence"):
        for node in ast.walk(tree):
            if isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.MatMult):
                faults.append((module, node.lineno))
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in PRODUCTS:
                of_jax = isinstance(node.func.value, ast.Name) and node.func.value.id in ("jnp", "lax")
                if of_jax and not any(keyword.arg == "precision" for keyword in node.keywords):
                    faults.append((module, node.lineno))
    assert [f"{module}:{line}" for module, line in faults if module not in PLAIN_PRODUCTS] == []


def test_the_contracts_of_imports_cover_the_whole_house():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layered = next(contract for contract in contracts if contract["type"] == "layers")
    lean = next(contract for contract in contracts if contract["type"] == "forbidden")
    floors = {name.strip("() ") for layer in layered["layers"] for name in re.split(r"[|:]", layer)}
    parts = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    parts -= {"__init__", "__pycache__", "__main__"}
    assert parts <= floors
    below = {name for name in parts if name.startswith("_") or name in (*ENGINES, "core", *KNOW_NO_ENGINE[:2])}
    assert {f"hyprax.{name}" for name in below} <= set(lean["source_modules"])


def test_the_version_is_said_once():
    version = re.search(r'__version__ = "(.+)"', (PACKAGE / "__init__.py").read_text())
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), flags=re.MULTILINE)
    assert version is not None
    assert cited is not None
    assert version.group(1) == cited.group(1)


def test_the_conda_recipe_asks_for_what_the_package_asks_for():
    recipe = (ROOT / "packaging/conda/recipe.yaml").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    run = recipe.split("  run:\n")[1].split("\n\n")[0]
    asked = [line.replace(" ", "").removeprefix("-") for line in run.splitlines()]
    assert asked == ["python>=${{python_min}}", *project["dependencies"]]
    assert f'version: "{hx.__version__}"' in recipe
    least = re.search(r'- "(.+)"', (ROOT / "packaging/conda/variants.yaml").read_text())
    assert least is not None
    assert project["requires-python"] == f">={least.group(1)}"


def test_what_is_left_to_the_slow_tests_exists():
    lost = []
    for name in COSTLY.read_text().splitlines():
        file, test = name.split("[")[0].split("::", 1)
        path = ROOT / file
        if not path.is_file() or f"def {test.split('::')[-1]}(" not in path.read_text():
            lost.append(name)
    assert not lost
