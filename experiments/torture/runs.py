"""The runs that are tormented: one of each engine and kind of search, small, and each in a process of its own.

A process is forked from a server that has imported the library and started nothing (`multiprocessing`'s forkserver).
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import hyprax as hx
from hyprax import _arrays
from hyprax.runs import Run, RunError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 4))
Y = X @ np.asarray([1.0, -2.0, 0.0, 0.5]) + 0.5 * RNG.normal(size=60)
STEPS = 12
NEVER = hx.search.Stopping(gradient=0.0, patience=None)
NAMED = (RunError, OSError)
REFUSED, INTERRUPTED = 2, 130

Made = tuple[Any, Any, Any]
"""An objective, where it starts, and the search (`None`: the default)."""


def penalties() -> dict[str, Any]:
    return {"penalty": hx.Positive(np.full(4, 0.1))}


def _optimum() -> hx.Optimum:
    return hx.Optimum(hx.families.Squared(X[:40], Y[:40], penalty="penalty"))


def implicit() -> Made:
    optimum = _optimum()
    return hx.ImplicitObjective(optimum, optimum.loss.mean_loss, (X[40:], Y[40:])), penalties(), None


def adaptive() -> Made:
    return implicit()[0], penalties(), hx.search.MAID()


def folds() -> Made:
    optimum = hx.Optimum(hx.families.Squared(X, Y, penalty="penalty"))
    objective = hx.CrossValidated(optimum, 3, key=jax.random.key(0), redraw=True)
    return objective, penalties(), hx.search.Optax(optax.adam(0.05))


def single_loop() -> Made:
    optimum = _optimum()
    objective = hx.implicit.SABA(
        optimum, optimum.loss.mean_loss, (X[40:], Y[40:]), batch_size=4, outer_batch_size=4, key=jax.random.key(0)
    )
    return objective, penalties(), hx.search.Optax(optax.sgd(0.05))


def unrolled(steps: int = 30, long: hx.unroll.LongRun | None = None) -> Made:
    def loss(w: Any, hyper: Any, batch: Any) -> Any:
        return jnp.mean(jnp.square(batch[0] @ w - batch[1])) + 0.5 * jnp.sum(hyper["penalty"] * jnp.square(w))

    training = hx.Training(
        loss=loss,
        init=lambda hyper, key: jnp.zeros(4),
        optimizer=lambda hyper: hx.unroll.MomentumSGD(0.05, 0.9),
        batches=hx.Minibatches((X[:40], Y[:40]), 8, key=jax.random.key(1)),
        steps=steps,
    )
    outer = lambda w, hyper, data: jnp.mean(jnp.square(data[0] @ w - data[1]))  # noqa: E731
    objective = hx.UnrolledObjective(
        training, outer, (X[40:], Y[40:]), mode=hx.unroll.Reversible(long=long), key=jax.random.key(0)
    )
    return objective, penalties(), hx.search.Optax(optax.adam(0.05))


def evidence() -> Made:
    objective = hx.EvidenceObjective(
        lambda w, hyper, x: (x @ w)[None],
        jnp.zeros(4),
        (X, Y[:, None]),
        likelihood=hx.evidence.Gaussian(0.5),
        prior=lambda hyper: hx.evidence.GaussianPrior(hyper["precision"]),
        estimator=hx.evidence.Chain(hx.evidence.designs.OneRow(8, pilot=4)),
        schedule=hx.evidence.Schedule(every=1),
        key=jax.random.key(0),
    )
    return objective, {"precision": hx.Positive(0.8)}, None


def made(name: str, folder: Path) -> Made:
    """A run; one through a long training keeps the state of its evaluation beside the record, at every segment."""
    if name == LONG:
        return unrolled(600, hx.unroll.LongRun(str(folder / "evaluation"), progress=False, seconds=0.0))
    return RUNS[name]()


LONG = "unrolled, saved within the training"
RUNS: dict[str, Callable[[], Made]] = {
    "implicit, L-BFGS": implicit,
    "implicit, MAID": adaptive,
    "folds redrawn, Adam": folds,
    "single loop, SABA": single_loop,
    "unrolled, reversed": unrolled,
    "evidence, in training": evidence,
    LONG: unrolled,
}


def carry_out(name: str, folder: Path, every: float, tell: Callable[[int], None] = lambda _: None) -> None:
    """Begin the run in this folder, or go on with it, until it has ended."""
    _carry_out(made(name, folder), folder, every, tell)


def _carry_out(problem: Made, folder: Path, every: float, tell: Callable[[int], None]) -> None:
    objective, start, search = problem
    watch = [lambda step: tell(step.step)]
    run = Run(folder, every=every)
    hx.tune(objective, start, search=search, steps=STEPS, stop=NEVER, run=run, progress=False, callbacks=watch)


def carry_out_all(
    name: str, folders: Sequence[Path], every: float, tell: Callable[[int, int], None], failed: list[BaseException]
) -> None:
    """The same run in several folders, each in a thread of its own, once the first has compiled its programs."""
    shared = made(name, folders[0])
    ready = threading.Event()

    def one(i: int) -> None:
        def heard(step: int) -> None:
            tell(i, step)
            ready.set()

        try:
            _carry_out(shared, folders[i], every, heard)
        except BaseException as error:
            failed.append(error)
        finally:
            ready.set()

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(folders))]
    threads[0].start()
    ready.wait()
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join()


class Faults:
    """Counts the operations by which files are made whole (open, flush to disk, rename), and ends the process at one.

    Half of what is written is there when it ends within a write: as after a loss of power.
    """

    def __init__(self, fatal: int | None):
        self.count, self.fatal = 0, fatal
        fsync, replace, usual = os.fsync, os.replace, open

        def counted(operation: Callable[..., Any]) -> Callable[..., Any]:
            def run(*arguments: Any) -> Any:
                self.reached()
                found = operation(*arguments)
                self.reached()
                return found

            return run

        def torn(path: Any, mode: str = "r") -> Any:
            stream = usual(path, mode)
            if "w" in mode and (self.count + 1) == self.fatal:
                whole = stream

                def half(data: bytes) -> None:
                    whole.write(data[: len(data) // 2])
                    whole.flush()
                    self.reached()

                stream = _Half(whole, half)
            elif "w" in mode:
                self.reached()
            return stream

        os.fsync, os.replace = counted(fsync), counted(replace)
        _arrays.open = torn  # pyright: ignore[reportAttributeAccessIssue]  # a name of the module, before the built-in

    def reached(self) -> None:
        self.count += 1
        if self.count == self.fatal:
            os._exit(137)


class _Half:
    def __init__(self, stream: Any, write: Callable[[bytes], None]):
        self.stream, self.write = stream, write

    def __enter__(self) -> "_Half":
        return self

    def __exit__(self, *_: Any) -> None:
        self.stream.close()


def child(name: str, folders: Sequence[str], every: float, pipe: Connection, fatal: int | None) -> None:
    """The whole life of a process: tells of its steps, dies where it is told, ends with what a run is refused by."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    jax.config.update("jax_enable_x64", True)
    faults = Faults(fatal)
    lock = threading.Lock()

    def tell(said: Any) -> None:
        with lock:
            pipe.send(said)

    tell("ready")
    failed: list[BaseException] = []
    try:
        if len(folders) == 1:
            carry_out(name, Path(folders[0]), every, lambda step: tell((0, step)))
        else:
            carry_out_all(name, [Path(x) for x in folders], every, lambda i, step: tell((i, step)), failed)
        if failed:
            raise failed[0]
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)  # at once: a second Ctrl-C may come while an interpreter takes itself down
    except NAMED as error:
        tell(f"{type(error).__name__}: {error}")
        sys.exit(REFUSED)
    tell(("operations", faults.count))
