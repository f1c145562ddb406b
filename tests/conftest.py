"""Strict numerics, one thread a worker, and every annotation of the package checked while the tests run."""

import math
import os
import signal
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread a worker: set before JAX and the BLAS libraries start theirs
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC"):
        os.environ.setdefault(variable, "1")
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false " + os.environ.get("XLA_FLAGS", "")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")

from collections.abc import Iterator

import hypothesis
import jax
import jaxtyping
import pytest

from costs import COSTLY
from thoroughness import USUAL

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# Before the first import of the package, which the hook rewrites.
jaxtyping.install_import_hook("hyprax", "type_checker.check")

# The first example of a property compiles, so a deadline would measure the compiler.
hypothesis.settings.register_profile("dev", deadline=None, max_examples=USUAL)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=USUAL, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell: some tests send it
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What costs much is slow: see costs.py."""
    costly = set(COSTLY.read_text().splitlines())
    for item in items:
        if item.nodeid in costly:
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Append what each test costs to the file that HYPRAX_COSTS names: seconds of processor time, its processes too."""
    began = sum(os.times()[:4])
    result = yield
    if named := os.environ.get("HYPRAX_COSTS"):
        with open(named, "a") as file:
            file.write(f"{sum(os.times()[:4]) - began:.2f}\t{item.nodeid}\n")
    return result


# Each program holds memory maps, of which a process may have 65,530: one more, and XLA aborts.
MOST_MAPS = 20_000


def memory_maps() -> float:
    """How many there are; infinitely many where the system does not say."""
    try:
        return Path("/proc/self/maps").read_bytes().count(b"\n")
    except OSError:
        return math.inf


@pytest.fixture(autouse=True, scope="module")
def programs() -> Iterator[None]:
    """Programs are kept from module to module, since many use the same, until there are too many of them."""
    yield
    if memory_maps() > MOST_MAPS:
        jax.clear_caches()


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Annotations unchecked, as for a user: for tests of the errors that arguments of a wrong type meet."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of the real data sets: that named by HYPRAX_DATA, else ../shared/data beside the repository."""
    named = os.environ.get("HYPRAX_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no data sets in {folder}: set HYPRAX_DATA to the folder that holds them")
    return folder
