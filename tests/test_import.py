"""What `import hyprax` brings with it, and that every module can be imported first."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src"
HEAVY = ("matplotlib", "sklearn", "torch", "optuna", "pandas", "typer", "rich", "pydantic", "jinja2", "scipy.optimize")
# A module is imported in a fresh process: by its package if it is private.
MODULES = sorted(
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
    for path in SOURCE.rglob("*.py")
    if not path.name.startswith("_") or path.name == "__init__.py"
)


# Names are imported where they are first used, so an import alone would show nothing.
EVERYTHING = "import hyprax; names = [getattr(hyprax, name) for name in hyprax.__all__]"


def fresh(code: str) -> str:
    """What `code` prints in a new interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_light():
    loaded = set(fresh(f"{EVERYTHING}; import sys; print(' '.join(sys.modules))").split())
    assert {"hyprax.implicit", "hyprax.search", "hyprax.runs"} <= loaded
    assert loaded.isdisjoint(HEAVY), f"hyprax pulls in {sorted(loaded.intersection(HEAVY))}"


def test_import_alone_does_not_load_jax():
    assert "jax" not in fresh("import sys, hyprax; print(' '.join(sys.modules))").split()


def test_every_name_of_the_stub_is_there():
    assert int(fresh(f"{EVERYTHING}; print(len(names))")) > 30


def test_import_starts_no_device_and_changes_no_setting():
    # A device would take memory from whoever only wants `--help`, and freeze settings that the user has yet to make.
    code = f"""
import jax
before = {{name: jax.config.values[name] for name in jax.config.values}}
{EVERYTHING}
changed = [name for name in before if jax.config.values[name] != before[name]]
jax.config.update("jax_num_cpu_devices", 2)
print(changed, jax.device_count())
"""
    assert fresh(code).split() == ["[]", "2"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_every_public_module_can_be_imported_first():
    # What others wrote is imported once; each module of ours then first in a copy of that process.
    code = f"""
import importlib, os, sys, traceback, warnings
import jax, jax.numpy, jax.scipy.linalg, equinox, optax, pandas, pydantic, typer
import sklearn.model_selection, sklearn.pipeline
assert not any(name.startswith("hyprax") for name in sys.modules)
for module in {MODULES}:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forks under JAX, which starts nothing here
        child = os.fork()
    if child == 0:
        try:
            os._exit(0 if importlib.import_module(module).__doc__ else 2)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    print(module, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert fresh(code).splitlines() == [f"{module} 0" for module in MODULES]


def test_the_version_is_a_version():
    assert (
        fresh("import hyprax, importlib.metadata as m; print(hyprax.__version__ == m.version('hyprax'))").strip()
        == "True"
    )
