"""Odd values for every argument of the API, and the dice that choose among right and odd ones."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

Pair = namedtuple("Pair", "left right")
DIGITS = {"bfloat16": 0.06, "float16": 0.01, "float32": 2e-4, "float64": 1e-9}


@jax.tree_util.register_dataclass
@dataclass
class Box:
    """A dataclass of arrays."""

    inside: Any
    more: Any


class Module(eqx.Module):
    """A module whose leaves are arrays."""

    weight: Any
    bias: Any


def fails(*_):
    raise ZeroDivisionError("division by zero in what the user wrote")


def branches(x, *_):
    return jnp.sum(jax.tree.leaves(x)[0]) if jax.tree.leaves(x)[0].sum() > 0 else 0.0


NUMBERS = [
    float("nan"),
    float("inf"),
    -1.0,
    0,
    0.0,
    "0.1",
    None,
    1e300,
    1e-300,
    True,
    0.1 + 0.1j,
    [0.1],
    np.ones(2),
    jnp.ones(2),
    Fraction(1, 3),
    {},
]
COUNTS = [
    0,
    -1,
    2.5,
    "3",
    None,
    True,
    10**15,
    2**40,
    float("nan"),
    float("inf"),
    np.ones(2, int),
    [2],
    3 + 0j,
    1.0,
    "many",
    {},
]
KEYS = [
    0,
    None,
    "key",
    1.5,
    np.zeros(3, np.uint32),
    jnp.zeros(2),
    np.zeros((2, 2), np.uint32),
    object(),
    jnp.uint32(3),
]
FUNCTIONS = [
    None,
    3,
    "loss",
    jnp.ones(2),
    [len],
    lambda: 0.0,
    lambda *_: None,
    lambda *_: "text",
    lambda *_: (1.0, 2.0),
    fails,
    branches,
]
FUNCTIONS += [
    lambda *_: 1,
    lambda *_: jnp.nan,
    lambda *_: jnp.ones((2, 3)),
    lambda *_: {"a": 1.0},
    lambda x, *_: x,
    lambda *_: True,
    dict,
    print,
]
FUNCTIONS += [
    lambda *_: jnp.ones(()) * 1j,
    lambda *_: np.array("text"),
    lambda x, *_: np.sin(np.asarray(jax.tree.leaves(x)[0])),
    Module,
]
TREES = [
    {},
    None,
    "start",
    [],
    (),
    3,
    True,
    {"a": "text"},
    {"a": object()},
    [1, 2],
    np.arange(3),
    {"a": np.ones(2), "b": np.ones(2, bool)},
    len,
]
TREES += [
    {1: 2.0, "b": 3.0},
    np.array([1.0, np.nan]),
    jnp.array([np.inf]),
    np.array(["a", "b"]),
    np.ones(2) * 1j,
    jnp.ones((0,)),
    {"a": jax.random.key(0)},
]
TREES += [
    {"a": jax.random.key(0)},
    np.array([None, 1.0]),
    {"a": np.float64("nan")},
    np.array([1], dtype="datetime64[s]"),
    eqx.nn.Linear,
    range(3),
    {"a": {1.0}},
]
DATA = [
    *TREES,
    {"a": np.ones(3), "b": np.ones(4)},
    [[1.0, 2.0], [3.0]],
    "abc",
    ["a", "b"],
    np.ones(()),
    np.ones((0, 2)),
    {"a": []},
]
TIMES = [
    [],
    [0.3333],
    [0.0, 0.0],
    [0.5, 0.25],
    [float("nan")],
    "0",
    ["a"],
    [[0.0, 0.5]],
    [-0.5],
    [1e9],
    {},
    0.25,
    [True],
    [None],
    [0j],
    lambda: 0,
]
OBSERVE = [
    None,
    3,
    [3],
    [None],
    {"a": None},
    {"a": 3},
    {3: lambda x: 0.0},
    {"": lambda x: 0.0},
    "nothing",
    ["loss", "x"],
    [["loss"]],
    {"a.b": len},
    ",",
]
OBSERVE += [{"a": function} for function in FUNCTIONS] + [
    {"a" * 300: lambda x: jnp.float32(1)},
    {"mean": lambda x: jnp.float32(1), "b/c\n": len},
    {len: len},
]
WORDS = ["", None, 3, "Euler", "none", [], "all", True, object, b"euler"]
ODD = {
    "lr rho horizon dt eps lam period c micro_batches snapshot_every": NUMBERS,
    "paths runs steps batch micro chunk n seed": COUNTS,
    "key": KEYS,
    "sample_loss drift apply_noise loss optimizer potential covariance": FUNCTIONS,
    "x0 params": TREES,
    "data": DATA,
    "times rates": TIMES,
    "observe observables": OBSERVE,
    "method keep normals dtype expectation without judged devices variant snapshot norms": WORDS,
    "noise_shape order": [
        3,
        "2",
        None,
        (2.5,),
        (-1,),
        [2, 3],
        (0,),
        (1, 1, 1),
        ("a",),
        (3, 4),
        (True, 2),
        (2, 1),
        (10**6, 10**6),
        {},
        (0, 2),
    ],
    "replace antithetic": [None, "no", 2, [], np.ones(2), jnp.ones(2)],
    "problem equation sde chain hypothesis": [None, 3, "digits", len, {}, Pair(1, 2)],
}
POOL = {name: pool for names, pool in ODD.items() for name in names.split()}


class Draw:
    """Choices of one try, and which argument was spoiled."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.spoiled: tuple[str, Any] | None = None
        self.arguments: dict[str, Any] = {}
        self.dtype = self.pick(["float32"] * 6 + ["bfloat16", "float16", "float64", "float64"])

    def pick(self, of: Any) -> Any:
        return of[int(self.rng.integers(len(of)))]

    def leaf(self, shape: tuple[int, ...]) -> Any:
        values = self.rng.normal(size=shape) * 0.5 + 1
        made = jnp.asarray(values, self.dtype)
        return self.pick([made, made, np.asarray(made), float(made) if shape == () else made])

    def tree(self) -> Any:
        def leaf() -> Any:
            return self.leaf(self.pick([(), (1,), (2,), (3, 1), (2, 2)]))

        makers: list[Callable[[], Any]] = [
            leaf,
            leaf,
            lambda: {"w": leaf(), "b": leaf()},
            lambda: (leaf(), [leaf()]),
            lambda: Pair(leaf(), None),
        ]
        makers += [
            lambda: [leaf(), None, leaf()],
            lambda: {"z": {"y": {"x": leaf()}}, "empty": {}},
            lambda: Box(leaf(), {"a": leaf()}),
        ]
        makers += [
            lambda: Module(leaf(), leaf()),
            lambda: {"some": leaf(), "none": self.leaf((0, 2))},
            lambda: (leaf(),),
            lambda: {"2": leaf(), "10": leaf()},
        ]
        return self.pick(makers)()

    def args(self, **given: Any) -> dict[str, Any]:
        """Arguments of one call, one of them replaced by an odd value now and then."""
        if self.spoiled is None and self.rng.random() < 0.4:
            name = self.pick([name for name in given if name in POOL])
            given[name] = self.pick(POOL[name])
            self.spoiled = name, given[name]
        self.arguments |= given
        return given

    def key(self) -> Any:
        seed = int(self.rng.integers(1000))
        return self.pick(
            [jax.random.key(seed), jax.random.PRNGKey(seed), np.asarray(jax.random.PRNGKey(seed))]
        )

    def close(self, found: Any, wanted: Any, stderr: Any = 0.0, paths: int = 1) -> bool:
        """Within rounding, and the standard errors of paths that one right mean in a million
        exceeds; fewer than ten paths say nothing.
        """
        if 1 < paths < 10:
            return True
        gap = np.abs(np.asarray(found, float) - np.asarray(wanted, float))
        wide = stats.t.ppf(1 - 5e-7, max(paths - 1, 1)) * np.asarray(stderr, float)
        return bool(
            (gap <= DIGITS[self.dtype] * (1 + np.abs(np.asarray(wanted, float))) + wide).all()
        )


def first(x: Any) -> Any:
    return next(leaf for leaf in jax.tree.leaves(x) if jnp.size(leaf)).ravel()[0]


def number(tree: Any) -> float:
    """The first number of a start."""
    return float(np.ravel(next(leaf for leaf in jax.tree.leaves(tree) if np.size(leaf)))[0])


def squares(x: Any, sample: Any) -> Any:
    """`|x - a|^2 / 2`, whose gradient is affine, so that means are known."""
    parts = [
        jnp.sum((leaf - jax.tree.leaves(sample)[0].astype(jnp.result_type(leaf))) ** 2) / 2
        for leaf in jax.tree.leaves(x)
    ]
    return sum(parts)
