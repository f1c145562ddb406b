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


@pytest.mark.parametrize("module", MODULES)
def test_every_public_module_can_be_imported_first(module):
    assert fresh(f"import {module}; print({module}.__doc__ is not None)").strip() == "True"


def test_the_version_is_a_version():
    assert (
        fresh("import hyprax, importlib.metadata as m; print(hyprax.__version__ == m.version('hyprax'))").strip()
        == "True"
    )
