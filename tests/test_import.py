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


def fresh(code: str) -> str:
    """What `code` prints in a new interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_light():
    code = "import sys, hyprax; print(' '.join(sys.modules))"
    loaded = set(fresh(code).split())
    assert "hyprax" in loaded
    assert loaded.isdisjoint(HEAVY), f"import hyprax pulls in {sorted(loaded.intersection(HEAVY))}"


def test_import_starts_no_device_and_changes_no_setting():
    # A device would take memory from whoever only wants `--help`, and freeze settings that the user has yet to make.
    code = """
import jax
before = {name: jax.config.values[name] for name in jax.config.values}
import hyprax
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
