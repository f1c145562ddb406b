"""The environments of the peers, each a virtual environment below `.bench/`: python -m benchmarks.harness.environments

hyprax, jaxopt, optimistix and scikit-learn run in the interpreter that runs the harness. What cannot be installed is
said in the tables, and stops nothing: the reason is kept as `.bench/NAME/missing/PACKAGE`.
"""

import functools
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".bench"
TORCH = "torch==2.13.0+cpu"
"""For CPUs, by name: the plain name brings gigabytes for accelerators along."""
ENVIRONMENTS: dict[str, list[str]] = {
    "torch": [TORCH, "higher", "torchopt", "laplace-torch"],
    "himalaya": ["packaging", "himalaya"],  # which himalaya imports without asking for it
    "pygam": ["pygam"],
    "optuna": [f"{ROOT}[sklearn]", "optuna"],
}
UNWANTED = {"torch": "torchvision"}
"""What a package asks for and does not need, and what PyTorch for CPUs cannot load: it is taken out again."""
R_PACKAGES = {"glmnet": "r-cran-glmnet", "mgcv": "r-cran-mgcv"}


def python(environment: str) -> str:
    """The interpreter of an environment; that of R's peers is ours, which starts Rscript."""
    return sys.executable if environment in ("hyprax", "r") else str(FOLDER / environment / "bin" / "python")


def missing(environment: str, package: str) -> str | None:
    """Why a package is not there, or `None` if it is."""
    if environment == "hyprax":
        return None
    if environment == "r":
        return _missing_in_r(package)
    if not Path(python(environment)).exists():
        return "make bench-env has not been run"
    reason = FOLDER / environment / "missing" / package
    return reason.read_text() if reason.exists() else None


@functools.cache
def _missing_in_r(package: str) -> str | None:
    if shutil.which("Rscript") is None:
        return "no Rscript on PATH"
    found = subprocess.run(["Rscript", "-e", f"library({package})"], capture_output=True, check=False)
    return f"Rscript has no {package} (Debian: {R_PACKAGES[package]})" if found.returncode else None


def r_versions() -> dict[str, str]:
    """Of R, and of the packages that it has."""
    there = [name for name in R_PACKAGES if _missing_in_r(name) is None]
    asked = "cat(as.character(getRversion()), sapply(commandArgs(TRUE), function(p) as.character(packageVersion(p))))"
    found = subprocess.run(["Rscript", "-e", asked, *there], capture_output=True, text=True, check=False)
    return dict(zip(["R", *there], found.stdout.split(), strict=False))


def make(environment: str) -> None:
    """Make an environment, and install its packages one by one, so that one that fails leaves the others."""
    folder = FOLDER / environment
    if not Path(python(environment)).exists():
        venv.create(folder, with_pip=True)
    why = folder / "missing"
    shutil.rmtree(why, ignore_errors=True)
    why.mkdir()
    constraint = folder / "constraint.txt"
    constraint.write_text(TORCH + "\n")
    for package in ENVIRONMENTS[environment]:
        print(f"{environment}: {package}", flush=True)
        asked = [python(environment), "-m", "pip", "install", "--quiet", "--constraint", str(constraint), package]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["pip failed"]
            name = package.split("==")[0]
            (why / ("hyprax" if name.startswith("/") else name)).write_text(lines[-1][:200])
            print(f"  not installed: {lines[-1]}", flush=True)
    if unwanted := UNWANTED.get(environment):
        asked = [python(environment), "-m", "pip", "uninstall", "--quiet", "--yes", unwanted]
        subprocess.run(asked, capture_output=True, check=False)


def main() -> None:
    for environment in ENVIRONMENTS:
        make(environment)
    for package in R_PACKAGES:
        print(f"R: {package}: {missing('r', package) or 'there'}")


if __name__ == "__main__":
    main()
