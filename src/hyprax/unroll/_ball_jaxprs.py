"""Programs of JAX in ball arithmetic: what a function is in real numbers, from its jaxpr.

A value is either a `Ball`, or given: an array that JAX itself computes, which is exact. Given are integers, random
keys, what is decided by a comparison, constants and data, and moves of those (a batch is a gather); and what random
keys draw, a normal number say, which is data like any other. Arithmetic on given floating numbers makes balls.

Calls are stepped into and loops are unrolled. A conversion between floating dtypes is the identity in real numbers.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from .._jaxprs import bind
from ._balls import Arithmetic, Ball, Undecided, Unsupported, settled
from ._big_functions import integers
from ._given import MOVES, exact_in_jax, floating


class Unknown:
    """The place of a value that could not be computed; an error only if the outputs of a program depend on it."""

    def __init__(self, reason: Exception):
        self.reason = reason


CALLS = {"jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint", "remat", "custom_jvp_call",
         "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_lin"}  # fmt: skip
ELEMENTWISE: dict[str, Callable[..., Ball]] = {
    "add": Arithmetic.add,
    "add_any": Arithmetic.add,
    "sub": Arithmetic.sub,
    "mul": Arithmetic.mul,
    "div": Arithmetic.div,
    "neg": Arithmetic.neg,
    "exp": Arithmetic.exp,
    "log": Arithmetic.log,
    "tanh": Arithmetic.tanh,
    "logistic": Arithmetic.logistic,
    "sqrt": Arithmetic.sqrt,
    "abs": Arithmetic.abs,
    "sign": Arithmetic.sign,
    "max": Arithmetic.larger,
    "min": lambda ar, a, b: ar.larger(a, b, sign=-1),
    "square": lambda ar, a: ar.mul(a, a),
    "rsqrt": lambda ar, a: ar.div(_one(ar), ar.sqrt(a)),
    "log1p": lambda ar, a: ar.log(ar.add(_one(ar), a)),
    "expm1": lambda ar, a: ar.sub(ar.exp(a), _one(ar)),
    "clamp": lambda ar, low, x, high: ar.larger(ar.larger(x, low), high, sign=-1),
}
COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")
SAME = {"lt": False, "le": True, "gt": False, "ge": True, "eq": True, "ne": False}


def _one(arithmetic: Arithmetic) -> Ball:
    return arithmetic.exact(np.ones(()))


def inner(eqn: JaxprEqn) -> tuple[Jaxpr, Sequence[Any]]:
    """The program that a call calls, and its constants."""
    body = next(eqn.params[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in eqn.params)
    return (body.jaxpr, body.consts) if isinstance(body, ClosedJaxpr) else (body, ())


class BallProgram:
    """A jaxpr, run in balls. What of it is given at every argument that changes is computed by JAX in one go.

    - `moving`: of each argument, whether it may be a ball.
    """

    def __init__(self, closed: ClosedJaxpr, moving: Sequence[bool]):
        self.closed = closed
        self._maps: dict[int, list[np.ndarray]] = {}
        self._data: dict[tuple[int, int], tuple[Any, Ball]] = {}
        self._given, self._wanted, self._rest = self._split(closed.jaxpr, moving)

    def _split(self, jaxpr: Jaxpr, moving: Sequence[bool]) -> tuple[Callable[..., Any], list[Any], list[JaxprEqn]]:
        """A compiled function for the equations that are given, the variables that it gives, the other equations."""
        balls = {v for v, ball in zip(jaxpr.invars, moving, strict=True) if ball}
        given, rest = [], []
        for eqn in jaxpr.eqns:
            inputs = [v for v in eqn.invars if not isinstance(v, Literal)]
            if any(v in balls for v in inputs) or not exact_in_jax(eqn):
                balls.update(eqn.outvars)
                rest.append(eqn)
            else:
                given.append(eqn)
        made = {v for eqn in given for v in eqn.outvars}
        asked = [v for eqn in rest for v in eqn.invars] + list(jaxpr.outvars)
        used = {v for v in asked if not isinstance(v, Literal)}
        wanted = [v for v in made if v in used]
        self._arguments = arguments = [v for v in (*jaxpr.constvars, *jaxpr.invars) if v not in balls]

        def compute(*values: Any) -> list[Any]:
            env = dict(zip(arguments, values, strict=True))
            for eqn in given:
                env.update(zip(eqn.outvars, bind(eqn, [_read(env, v) for v in eqn.invars]), strict=True))
            return [env[v] for v in wanted]

        return jax.jit(compute), wanted, rest

    def __call__(self, arithmetic: Arithmetic, *arguments: Any) -> list[Any]:
        """The outputs, balls or given.

        **Raises:** `Undecided`, `Unsupported`; `TooLarge` for numbers above 2^128 or so.
        """
        jaxpr = self.closed.jaxpr
        env: dict[Any, Any] = dict(zip(jaxpr.constvars, self.closed.consts, strict=True))
        env.update(zip(jaxpr.invars, arguments, strict=True))
        if self._wanted:
            env.update(zip(self._wanted, self._given(*(env[v] for v in self._arguments)), strict=True))
        with np.errstate(over="ignore", invalid="ignore"):  # radii that overflow are infinite, and so is 0 times them
            outputs = _Interpreter(arithmetic, self._maps, self._data).run(self._rest, env, jaxpr.outvars)
        for x in outputs:
            if isinstance(x, Unknown):
                raise x.reason
        return outputs


def _read(env: dict[Any, Any], variable: Any) -> Any:
    return variable.val if isinstance(variable, Literal) else env[variable]


class _Interpreter:
    """One run of a program: equations evaluated one by one."""

    def __init__(
        self, arithmetic: Arithmetic, maps: dict[int, list[np.ndarray]], data: dict[tuple[int, int], tuple[Any, Ball]]
    ):
        self.ar, self.maps, self.data = arithmetic, maps, data

    def run(self, eqns: Sequence[JaxprEqn], env: dict[Any, Any], outputs: Sequence[Any]) -> list[Any]:
        for eqn in eqns:
            inputs = [_read(env, v) for v in eqn.invars]
            unknown = next((x for x in inputs if isinstance(x, Unknown)), None)
            if unknown is None:
                try:
                    env.update(zip(eqn.outvars, self.equation(eqn, inputs), strict=True))
                    continue
                except (Undecided, Unsupported) as error:
                    unknown = Unknown(error)
            env.update((v, unknown) for v in eqn.outvars)
        return [_read(env, v) for v in outputs]

    def call(self, jaxpr: Jaxpr, consts: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        env = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(jaxpr.invars, inputs, strict=True))
        return self.run(jaxpr.eqns, env, jaxpr.outvars)

    def ball(self, x: Any) -> Ball:
        """A value as a ball; data are converted once."""
        if isinstance(x, Ball):
            return x
        if np.size(x) < 64:
            return self.ar.exact(x)
        key = (id(x), self.ar.bits)
        if key not in self.data or self.data[key][0] is not x:  # what is remembered is kept, so no id is used again
            self.data[key] = (x, self.ar.exact(x))
        return self.data[key][1]

    def equation(self, eqn: JaxprEqn, inputs: list[Any]) -> list[Any]:
        name = eqn.primitive.name
        if not any(isinstance(x, Ball) for x in inputs) and exact_in_jax(eqn):
            return bind(eqn, inputs)
        if name in ("max", "min"):  # with an infinity, from which a maximum over an axis may begin
            for x, other in ((inputs[0], inputs[1]), (inputs[1], inputs[0])):
                neutral = -np.inf if name == "max" else np.inf
                if not isinstance(x, Ball) and np.ndim(x) == 0 and float(x) == neutral:
                    return [self.ball(other)]
        if name in ELEMENTWISE:
            return [ELEMENTWISE[name](self.ar, *map(self.ball, inputs))]
        if name in COMPARISONS:
            return [jnp.asarray(self.compare(name, *inputs))]
        if name in CALLS:
            return self.call(*inner(eqn), inputs)
        if name in LOOPS:
            return LOOPS[name](self, eqn, inputs)
        if name == "select_n":
            return [self.select(*inputs)]
        if name in MOVES:
            return self.move(eqn, inputs)
        if name in OTHERS:
            return [OTHERS[name](self, eqn, inputs)]
        raise Unsupported(f"the operation {name}")

    def compare(self, name: str, a: Any, b: Any) -> np.ndarray:
        """With infinity and nan by the rules of floating point, in which a ball is any finite number.

        **Raises:** `Undecided` for balls of which nothing is known: they may be nan.
        """
        for x in (a, b):
            _bounded(x)
        if a is b and isinstance(a, Ball):
            return np.full(a.shape, SAME[name])
        special = np.zeros((), bool)
        plain: list[Any] = []
        for x in (a, b):
            finite = np.ones((), bool) if isinstance(x, Ball) else np.isfinite(np.asarray(x, np.float64))
            special = special | ~finite
            plain.append(x if isinstance(x, Ball) or np.all(finite) else np.where(finite, x, 0.0))
        if not np.any(special):
            return self.ar.compare(self.ball(a), self.ball(b), name)
        of_floats = {"lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal", "eq": "equal"}
        left, right = (np.zeros(x.shape) if isinstance(x, Ball) else np.asarray(x, np.float64) for x in (a, b))
        found = getattr(np, of_floats.get(name, "not_equal"))(left, right)
        if np.all(special):
            return np.broadcast_to(found, np.broadcast_shapes(a.shape, b.shape))
        return np.where(special, found, self.ar.compare(self.ball(plain[0]), self.ball(plain[1]), name))

    def select(self, which: Any, *cases: Any) -> Ball:
        """Of each entry that of the case with its number."""
        which = np.asarray(which).astype(np.int64)
        balls = [self.ball(x) for x in cases]
        shape = balls[0].shape

        def chosen(parts: list[np.ndarray]) -> Any:
            made = parts[0]
            for i, part in enumerate(parts[1:], 1):
                made = np.where(np.broadcast_to(which, shape) == i, part, made)
            return made

        return self.ar.joined(balls, chosen)

    def move(self, eqn: JaxprEqn, inputs: list[Any]) -> list[Any]:
        """The same move of the numbers of places, made by JAX; remembered where nothing else than balls goes in."""
        movable = [floating(v) for v in eqn.invars]
        pool = [self.ball(x) for x, moves in zip(inputs, movable, strict=True) if moves]
        if all(movable) and id(eqn) in self.maps:
            maps = self.maps[id(eqn)]
        else:
            with jax.enable_x64(True):
                places, start = [], 0
                for x, moves in zip(inputs, movable, strict=True):
                    if moves:
                        size = math.prod(np.shape(x) if not isinstance(x, Ball) else x.shape)
                        places.append(jnp.arange(start, start + size).reshape(x.shape))
                        start += size
                    else:
                        places.append(x)
                params = eqn.primitive.get_bind_params(eqn.params)
                if "fill_value" in params:
                    params["fill_value"] = -1
                made = eqn.primitive.bind(*places, **params)
                maps = [np.asarray(x) for x in (made if eqn.primitive.multiple_results else [made])]
            if all(movable):
                self.maps[id(eqn)] = maps
        if len(pool) == 1 and pool[0].middle.size:
            whole = pool[0].moved(np.ravel)
        else:
            whole = self.ar.joined(pool, lambda parts: np.concatenate([np.ravel(x) for x in parts]))

        def taken(places: np.ndarray) -> Ball:
            outside = (places < 0) | (places >= max(whole.middle.size, 1))
            if not np.any(outside):
                return whole.moved(lambda x: x[places])
            found = whole.moved(lambda x: x[np.where(outside, 0, places)])
            return Ball(found.middle, found.scale, np.where(outside, np.inf, found.radius))

        return [taken(places) for places in maps]


def _dot(self: _Interpreter, eqn: JaxprEqn, inputs: list[Any]) -> Ball:
    """Any product as one of matrices: batch dimensions first, contracted ones last and first."""
    a, b = map(self.ball, inputs)
    ((a_sum, b_sum), (a_batch, b_batch)) = eqn.params["dimension_numbers"]
    a_free = [i for i in range(len(a.shape)) if i not in (*a_sum, *a_batch)]
    b_free = [i for i in range(len(b.shape)) if i not in (*b_sum, *b_batch)]
    batch, summed = [a.shape[i] for i in a_batch], math.prod(a.shape[i] for i in a_sum)
    rows, columns = [a.shape[i] for i in a_free], [b.shape[i] for i in b_free]
    lead = [math.prod(batch)] if batch else []
    left = a.moved(lambda x: np.transpose(x, (*a_batch, *a_free, *a_sum)).reshape(*lead, math.prod(rows), summed))
    right = b.moved(lambda x: np.transpose(x, (*b_batch, *b_sum, *b_free)).reshape(*lead, summed, math.prod(columns)))
    return self.ar.matmul(left, right).moved(lambda x: np.reshape(x, (*batch, *rows, *columns)))


def _largest(self: _Interpreter, eqn: JaxprEqn, inputs: list[Any], sign: int) -> Ball:
    """max_i x_i over axes, two halves at a time."""
    x, axes = self.ball(inputs[0]), eqn.params["axes"]
    kept = [i for i in range(len(x.shape)) if i not in axes]
    x = x.moved(lambda y: np.transpose(y, (*axes, *kept)).reshape(-1, *(y.shape[i] for i in kept)))
    while x.shape[0] > 1:
        half = x.shape[0] // 2
        first, second, rest = (
            x.moved(lambda y, part=part: y[part])
            for part in (slice(half), slice(half, 2 * half), slice(2 * half, None))
        )
        x = self.ar.joined([self.ar.larger(first, second, sign=sign), rest], np.concatenate)
    return x.moved(lambda y: y[0])


def _power(self: _Interpreter, eqn: JaxprEqn, inputs: list[Any]) -> Ball:
    """x^y: by squaring where y is an integer, the same everywhere, else e^(y log x)."""
    x, y = map(self.ball, inputs)
    exponents = set(y.middle.ravel())
    if len(exponents) == 1 and y.scale == 0 and not np.any(y.radius) and abs(exponent := exponents.pop()) < 2**20:
        return self.ar.power(x, exponent)
    return self.ar.exp(self.ar.mul(y, self.ar.log(x)))


def _scatter_add(self: _Interpreter, eqn: JaxprEqn, inputs: list[Any]) -> Ball:
    """Each update is added at its place, which the transpose of the same operation finds among numbered places."""
    operand, places, updates = self.ball(inputs[0]), inputs[1], self.ball(inputs[2])
    with jax.enable_x64(True):
        zeros = jnp.zeros(operand.shape)
        numbers = jnp.arange(1.0, zeros.size + 1.0).reshape(operand.shape)
        plain = {**eqn.params, "update_jaxpr": None, "update_consts": ()}  # a sum of float64, whatever the numbers are
        adding = lambda updates: eqn.primitive.bind(zeros, places, updates, **plain)  # noqa: E731
        found = jax.vjp(adding, jnp.zeros(updates.shape))[1](numbers)[0]
    place = np.asarray(found).astype(np.int64).ravel() - 1  # -1: dropped
    (base, more), scale = self.ar.aligned(operand, updates)
    middle, radius = base.ravel().copy(), operand.radius.ravel().copy()
    kept = place >= 0
    np.add.at(middle, place[kept], more.ravel()[kept])
    np.add.at(radius, place[kept], updates.radius.ravel()[kept])
    shape = operand.shape
    return Ball(integers(middle.reshape(shape)), scale, settled(radius.reshape(shape), place.size))


def _convert(self: _Interpreter, eqn: JaxprEqn, inputs: list[Any]) -> Any:
    """Between floating dtypes the identity; to a bool whether it is 0."""
    new, x = eqn.params["new_dtype"], inputs[0]
    if jnp.issubdtype(new, np.floating):
        return self.ball(x)
    if new == np.dtype(bool):
        return jnp.asarray(self.ar.compare(self.ball(x), self.ar.exact(np.zeros(())), "ne"))
    raise Unsupported(f"a conversion to {new}")


def _cumulative(self: _Interpreter, eqn: JaxprEqn, inputs: list[Any]) -> Ball:
    x, axis, reverse = self.ball(inputs[0]), eqn.params["axis"], eqn.params["reverse"]

    def added(y: np.ndarray) -> np.ndarray:
        y = np.flip(y, axis) if reverse else y
        y = np.cumsum(y, axis=axis, dtype=y.dtype)
        return np.flip(y, axis) if reverse else y

    return Ball(integers(added(x.middle)), x.scale, settled(added(x.radius), x.shape[axis]))


def _bounded(x: Any) -> None:
    """**Raises:** `Undecided` for a ball of which nothing is known."""
    if isinstance(x, Ball) and not np.all(np.isfinite(x.radius)):
        raise Undecided("a question about a number of which nothing is known")


def _finite(x: Any) -> Any:
    """Of data what floating point says; of a ball that something is known of, that it is finite."""
    _bounded(x)
    return jnp.ones(x.shape, bool) if isinstance(x, Ball) else jnp.isfinite(x)


OTHERS: dict[str, Callable[[_Interpreter, JaxprEqn, list[Any]], Any]] = {
    "dot_general": _dot,
    "reduce_sum": lambda self, eqn, inputs: self.ar.sum(self.ball(inputs[0]), tuple(eqn.params["axes"])),
    "reduce_max": lambda self, eqn, inputs: _largest(self, eqn, inputs, 1),
    "reduce_min": lambda self, eqn, inputs: _largest(self, eqn, inputs, -1),
    "integer_pow": lambda self, eqn, inputs: self.ar.power(self.ball(inputs[0]), eqn.params["y"]),
    "pow": _power,
    "scatter-add": _scatter_add,
    "convert_element_type": _convert,
    "cumsum": _cumulative,
    "is_finite": lambda self, eqn, inputs: _finite(inputs[0]),
}


def _cond(self: _Interpreter, eqn: JaxprEqn, inputs: list[Any]) -> list[Any]:
    branches = eqn.params["branches"]
    branch = branches[int(np.clip(int(inputs[0]), 0, len(branches) - 1))]
    return self.call(branch.jaxpr, branch.consts, inputs[1:])


def _while(self: _Interpreter, eqn: JaxprEqn, inputs: list[Any]) -> list[Any]:
    params = eqn.params
    condition, body = params["cond_jaxpr"], params["body_jaxpr"]
    first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    state = inputs[second:]
    while True:
        going = self.call(condition.jaxpr, condition.consts, [*inputs[:first], *state])[0]
        if isinstance(going, Unknown):
            raise going.reason
        if not bool(going):
            return state
        state = self.call(body.jaxpr, body.consts, [*inputs[first:second], *state])


def _scan(self: _Interpreter, eqn: JaxprEqn, inputs: list[Any]) -> list[Any]:
    params = eqn.params
    body, length, fixed, carried = params["jaxpr"], params["length"], params["num_consts"], params["num_carry"]
    consts, carry, slices = inputs[:fixed], inputs[fixed : fixed + carried], inputs[fixed + carried :]
    rows: list[list[Any]] = []
    for i in reversed(range(length)) if params["reverse"] else range(length):
        here = [x.moved(lambda y, i=i: y[i]) if isinstance(x, Ball) else x[i] for x in slices]
        made = self.call(body.jaxpr, body.consts, [*consts, *carry, *here])
        carry = made[:carried]
        rows.append(made[carried:])
    if params["reverse"]:
        rows.reverse()
    stacked: list[Any] = []
    for column, variable in zip(zip(*rows, strict=True), eqn.outvars[carried:], strict=False):
        balls = floating(variable)
        unknown = [x for x in column if isinstance(x, Unknown)]
        if unknown:
            stacked.append(unknown[0])
            continue
        stacked.append(self.ar.joined([self.ball(x) for x in column], np.stack) if balls else jnp.stack(column))
    return [*carry, *stacked]


LOOPS: dict[str, Callable[[_Interpreter, JaxprEqn, list[Any]], list[Any]]] = {
    "cond": _cond,
    "while": _while,
    "scan": _scan,
}
