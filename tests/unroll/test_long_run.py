"""Long evaluations: interrupted anywhere and gone on with, they end with the bits of an evaluation in one go."""

import contextlib
import io
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reversals import make

import hyprax as hx
from hyprax.unroll import LongRun, Outer, ReversalCertificate, _long_run
from hyprax.unroll._long_run import FILE

pytestmark = pytest.mark.optimised  # rounding and bits are those of the compiler that users have


class Terminal(io.StringIO):
    def isatty(self):
        return True


def problem_with_metrics(steps):
    problem = make("paper", steps=steps, seed=4, dropout=True, dtype=jnp.float32)
    training = problem.training
    return problem, hx.Training(
        training.loss,
        training.init,
        training.optimizer,
        training.batches,
        steps,
        keyed=True,
        metrics=lambda params, hyper, batch: {"norm": jnp.sum(params["in"]["w"] ** 2)},
        every=150,
    )


def evaluate(problem, training, mode, hyper=None):
    outer = Outer(problem.outer_loss, problem.outer_data)
    return mode.value_and_grad(training, outer, problem.hyper if hyper is None else hyper, problem.key)


@pytest.mark.parametrize("mode", [pytest.param(hx.unroll.Reversible, marks=pytest.mark.slow), hx.unroll.Checkpointed])
def test_interrupted_at_every_third_segment_it_ends_with_the_same_bits(mode, tmp_path, monkeypatch):
    """Each process stops after a few segments, forwards and backwards, and the next goes on from its file."""
    problem, training = problem_with_metrics(900)
    plain = evaluate(problem, training, mode())
    passed, whole = _long_run.Journal.passed, []

    def interrupted(journal, *arguments):
        whole.append(arguments[:2])
        if len(whole) % 3 == 0:
            signal.raise_signal(signal.SIGINT)
        passed(journal, *arguments)

    monkeypatch.setattr(_long_run.Journal, "passed", interrupted)
    settings = LongRun(str(tmp_path / "state"), progress=False)
    attempts = 0
    while True:
        attempts += 1
        try:
            resumed = evaluate(problem, training, mode(long=settings))
            break
        except KeyboardInterrupt:
            assert (tmp_path / "state" / FILE).exists()
    assert attempts >= 3
    done = [number for number, _ in whole]
    assert done == sorted(done), "nothing is made twice"
    assert not list((tmp_path / "state").iterdir())
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(resumed), strict=True):
        assert a.dtype == b.dtype
        assert np.array_equal(a, b)
    assert isinstance(resumed[2].certificate, ReversalCertificate) == (mode is hx.unroll.Reversible)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    # Saved by the clock alone, the file at other hyperparameters is warned of, and that of another training refused.
    def stopped(journal, *arguments):
        passed(journal, *arguments)
        raise RuntimeError("the machine went down")

    monkeypatch.setattr(_long_run.Journal, "passed", stopped)
    often = LongRun(str(tmp_path / "state"), progress=False, seconds=0.0)
    with pytest.raises(RuntimeError, match="went down"):
        evaluate(problem, training, mode(long=often))
    other = problem.hyper | {"scale": problem.hyper["scale"] * 1.1}
    with pytest.warns(UserWarning, match="at other hyperparameters"), pytest.raises(RuntimeError, match="went down"):
        evaluate(problem, training, mode(long=often), other)
    problem, shorter = problem_with_metrics(training.steps - 1)
    with pytest.raises(ValueError, match="got one of another training"):
        evaluate(problem, shorter, mode(long=often))


@pytest.mark.slow
@pytest.mark.parametrize("mode", [hx.unroll.Reversible, hx.unroll.Checkpointed])
def test_a_state_of_the_loss_is_gone_on_with(mode, tmp_path, monkeypatch):
    """One that the way back looks at, so that reversal keeps it for every step."""
    problem = make("paper", steps=600, seed=4, dtype=jnp.float32)
    whole = problem.training

    def loss(params, hyper, batch, state):
        seen = 0.9 * state["mean"] + 0.1 * jnp.mean(params["in"]["w"])
        return whole.loss(params, hyper, batch) + 0.1 * state["mean"] * jnp.sum(params["in"]["w"]), {"mean": seen}

    def outer_loss(params, hyper, data, state):
        return problem.outer_loss(params, hyper, data) + state["mean"]

    def zero(params, hyper):
        return {"mean": jnp.zeros((), jnp.float32)}

    training = hx.Training(loss, whole.init, whole.optimizer, whole.batches, 600, state=zero)

    def run(mode):
        return mode.value_and_grad(training, Outer(outer_loss, problem.outer_data), problem.hyper, problem.key)

    plain, passed, count = run(mode()), _long_run.Journal.passed, []

    def interrupted(journal, *arguments):
        count.append(None)
        if len(count) % 3 == 0:
            signal.raise_signal(signal.SIGINT)
        passed(journal, *arguments)

    monkeypatch.setattr(_long_run.Journal, "passed", interrupted)
    resumed = None
    while resumed is None:
        with contextlib.suppress(KeyboardInterrupt):
            resumed = run(mode(long=LongRun(str(tmp_path), progress=False)))
    assert len(count) >= 6
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(resumed), strict=True):
        assert np.array_equal(a, b)


def test_a_damaged_file_is_named_and_the_evaluation_begun_anew(tmp_path):
    settings = LongRun(str(tmp_path), progress=False, seconds=0.0)
    training, run = ({"a": jnp.ones(3)}, 5), (jnp.ones(2),)
    journal = _long_run.Journal(settings, training, run, 9)
    with contextlib.suppress(RuntimeError), journal:
        journal.passed(1, "", [1, 2], {"state": jnp.ones(4)})
        raise RuntimeError
    assert _long_run.Journal(settings, training, run, 9).position == [1, 2]
    raw = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(raw[:-7])
    with pytest.warns(UserWarning, match=r"evaluation\.safetensors: cannot be read .* begun anew"):
        assert _long_run.Journal(settings, training, run, 9).position is None


@pytest.mark.slow
def test_a_bar_with_the_time_left_is_shown_on_a_terminal_alone(monkeypatch):
    problem, training = problem_with_metrics(600)
    clock = iter(range(0, 10_000, 5))
    monkeypatch.setattr("hyprax._progress.time.monotonic", lambda: float(next(clock)))
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr("sys.stderr", stream)
        evaluate(problem, training, hx.unroll.Checkpointed(long=LongRun()))
        text = stream.getvalue()
        assert ("back at step 0" in text and "<00:00" in text) == isinstance(stream, Terminal)
        assert bool(text) == isinstance(stream, Terminal)


def test_bad_settings_are_refused(unchecked):
    with pytest.raises(ValueError, match=r"seconds must be .* got -1"):
        LongRun(seconds=-1.0)
