"""Snapshots of long runs: written atomically, read again only by the very run that wrote them.

A snapshot says what it is of: configuration, numbers and functions of the step, placement,
versions, settings of jax. Where any of these differ it is refused with a sentence, because a run
that silently starts anew, or goes on with other numbers, is worse than one that stops. As long as a
run uses it, no other one can.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from sdesam._util import store
from sdesam._util.precision import of_products, precisely
from sdesam.ensemble import hardware
from sdesam.ensemble.placement import Placement

SCHEMA = "sdesam.snapshot/4"

_FEW_TIMES = 1000
"""Observation times that a snapshot lists; of more it has the hash."""
_SETTINGS = (
    "jax_threefry_partitionable",
    "jax_random_seed_offset",
    "jax_enable_x64",
    "jax_allow_f16_reductions",
    "jax_disable_jit",
    "jax_disable_most_optimizations",
    "jax_exec_time_optimization_effort",
    "jax_optimization_level",
)
"""Settings of jax on which draws or the last bits of a result depend."""


class Snapshot:
    """Where and how often to write, and what was found there.

    Args:
        path: the file; None writes nothing.
        every: seconds between two snapshots.
        identity: what the run is.
        found: arrays and position of the snapshot that was there, or None.
    """

    def __init__(
        self,
        path: Path | None,
        every: float,
        identity: dict[str, Any],
        found: tuple[dict[str, np.ndarray], dict[str, Any]] | None,
    ):
        self.path, self.every, self.identity, self.found = path, every, identity, found
        self._last = monotonic()

    @classmethod
    @contextmanager
    def open(
        cls,
        path: str | os.PathLike[str] | None,
        every: float,
        identity: Callable[[], dict[str, Any]],
        size: int = 0,
    ) -> Iterator[Snapshot]:
        """The snapshot at `path`, if there is one; while it is open, no other run can use it.

        Args:
            path: the file; None writes nothing.
            every: seconds between two snapshots.
            identity: says what the run is.
            size: bytes that the snapshot will have at least.

        Raises:
            ValueError: it is of another run, of another version, damaged, or in use by another run.
            OSError: it cannot be written.
        """
        if path is None:
            yield cls(None, every, {}, None)
            return
        file, known = Path(path), store.plain(identity())
        store.check_target(path, size)
        busy = (
            f"the snapshot {str(path)!r} is in use by another run: wait for that run to end, or"
            " name another file"
        )
        with store.lock(file, busy):
            yield cls(file, every, known, _read(file, known) if file.exists() else None)

    def due(self) -> bool:
        """Whether it is time for the next one."""
        return self.path is not None and monotonic() - self._last >= self.every

    def write(self, arrays: dict[str, np.ndarray], position: dict[str, Any]) -> None:
        """Replace the snapshot; if that fails, the old one is still there.

        Raises:
            OSError: it cannot be written.
        """
        if self.path is None:
            return
        store.write_arrays(
            self.path, arrays, {"schema": SCHEMA, "identity": self.identity, "position": position}
        )
        self._last = monotonic()


def _read(file: Path, known: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and position of a snapshot of this very run."""
    name = str(file)
    try:
        with store.open_arrays(file) as archive:
            said: dict[str, Any] = {
                part: archive.meta.get(part) for part in ("schema", "identity", "position")
            }
            schema, theirs, position = said.values()
            if schema == SCHEMA and not (isinstance(theirs, dict) and isinstance(position, dict)):
                raise ValueError("it does not say what it is of")
            differing = _differing(theirs, known) if schema == SCHEMA else ""
            arrays = archive.read() if schema == SCHEMA and not differing else {}
    except ValueError as error:
        raise ValueError(
            f"the snapshot {name!r} cannot be read, so the run does not start: delete it, or name"
            f" another file ({error})"
        ) from None
    if schema != SCHEMA:
        raise ValueError(
            f"{name!r} has schema {schema!r}, not {SCHEMA!r}: it is no snapshot of this version;"
            " name another file"
        )
    if differing:
        raise ValueError(
            f"the snapshot {name!r} is of another run, which differs in {differing}: finish that"
            " run, delete it, or name another file"
        )
    return arrays, position


def _differing(theirs: dict[str, Any], known: dict[str, Any]) -> str:
    names = [name for name in {**known, **theirs} if known.get(name) != theirs.get(name)]
    return ", ".join(
        f"{name} ({_short(theirs.get(name))} there, {_short(known.get(name))} here)"
        for name in names
    )


def identity(placement: Placement) -> dict[str, Any]:
    """All that a run depends on to the last bit: a snapshot is read by the same run only."""
    plan = placement.plan
    keys = placement.key
    dtype = jnp.result_type(*jax.tree.leaves(plan.x0))
    xi = None if plan.noise_shape is None else jnp.zeros(plan.noise_shape, dtype)
    versions = store.provenance()["versions"]
    times = np.asarray(placement.grid)
    return {
        **plan.config,
        "precision of products": of_products(),
        "functions and numbers": precisely(fingerprint)(
            [
                (_call, (plan.stepper, plan.x0, keys, xi)),
                (_call, (plan.observer, plan.x0)),
            ]
        ),
        "key": np.asarray(jax.random.key_data(keys)),
        "paths": placement.paths,
        "antithetic": placement.antithetic,
        "keep": placement.keep,
        "observation steps": (
            times
            if len(times) <= _FEW_TIMES
            else hashlib.sha256(times.astype(np.int64).tobytes()).hexdigest()
        ),
        "observables": plan.observer.names,
        "chunk": placement.size,
        "devices": placement.mesh.size,
        "device": placement.mesh.devices.flat[0].device_kind,
        "processes": [hardware.process_index(), hardware.process_count()],
        "instructions of the CPU": hardware.instruction_set()
        if hardware.on_cpu(placement.mesh)
        else "",
        "flags of XLA": hardware.compiler_flags(),
        "settings of jax": {name: str(getattr(jax.config, name, None)) for name in _SETTINGS},
        "versions": {name: versions[name] for name in ("sdesam", "jax", "jaxlib")},
    }


def _call(fn: Callable[..., Any], *arguments: Any) -> Any:
    """The value of a function that is a pytree: its numbers are then arguments, too."""
    return fn(*arguments)


# What is in a fingerprint, by an example. The drift `lambda x: -rate * x` with `rate = 2.0`, a
# number that is read from a global, and x of shape (3,):
#
#     { lambda ; a:f32[3]. let b:f32[3] = mul -2.0 a in (b,) }
#
# These parts are hashed: the operation `mul` and its parameters, the number -2.0, dtypes and
# shapes, and for each variable the number of its first appearance (a is 0, b is 1), because names
# are made anew in each process. If `rate` is another number now, or the drift is `-rate * x + 0`,
# the fingerprint is another one. If only the function's name or file has changed, it is the same.
# The arguments are hashed by their values: numbers and data of a stepper are leaves, and so they
# are arguments.


def fingerprint(functions: list[tuple[Callable[..., Any], tuple[Any, ...]]]) -> str:
    """A hash of what functions compute with their arguments: the operations, and every number in
    them and in functions they call.

    Raises:
        ValueError: a function asks Python for a result, which may be any.
    """
    parts = []
    for fn, arguments in functions:
        # hashes of inner functions by their identity, which is another's once they are gone
        known: dict[int, bytes] = {}
        leaves, structure = jax.tree.flatten(arguments)

        # jax never forgets a structure that it sees, and functions are in it
        def of_leaves(*leaves: Any, fn: Any = fn, structure: Any = structure) -> Any:
            return fn(*jax.tree.unflatten(structure, leaves))

        parts += [
            _of_value(jax.make_jaxpr(of_leaves)(*leaves), known),
            _of_value(leaves, known),
        ]
    return _joined("functions", parts).hex()[:16]


def _of_value(value: Any, known: dict[int, bytes]) -> bytes:
    """A hash of a parameter of an operation, whatever it is; `known` are the hashes of functions by
    their identity.
    """
    if isinstance(value, (core.Jaxpr, core.ClosedJaxpr)):
        if id(value) not in known:  # one function is often called many times
            known[id(value)] = _of_jaxpr(value, known)
        return known[id(value)]
    if isinstance(value, jax.Array) and jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key):
        return _of_value((str(jax.random.key_impl(value)), jax.random.key_data(value)), known)
    if hasattr(value, "__array__"):
        array = np.asarray(value)
        return _joined(f"{array.dtype}{array.shape}", [array.tobytes()])
    if isinstance(value, dict):
        return _joined(
            "dict", [_of_value((name, value[name]), known) for name in sorted(value, key=str)]
        )
    if isinstance(value, (set, frozenset)):
        return _joined("set", sorted(_of_value(part, known) for part in value))
    if isinstance(value, (tuple, list)):
        return _joined(type(value).__name__, [_of_value(part, known) for part in value])
    # a rule of differentiation, which was applied while this was traced
    if callable(value) and hasattr(value, "__qualname__"):
        return str(value.__qualname__).encode()
    return re.sub(r"0x[0-9a-f]+", "", repr(value)).encode()


def _of_jaxpr(jaxpr: Any, known: dict[int, bytes]) -> bytes:
    """A hash of the operations of a function, of the numbers in them, and of the functions it
    calls.
    """
    constants: list[Any] = []
    if isinstance(jaxpr, core.ClosedJaxpr):
        jaxpr, constants = jaxpr.jaxpr, jaxpr.consts
    numbers: dict[Any, int] = {}

    def atom(variable: Any) -> bytes:
        if isinstance(variable, core.Literal):
            return _joined(str(variable.aval), [_of_value(variable.val, known)])
        return f"{numbers.setdefault(variable, len(numbers))} {variable.aval}".encode()

    parts = [_of_value(constants, known), *map(atom, (*jaxpr.constvars, *jaxpr.invars))]
    for equation in jaxpr.eqns:
        name, prints = (
            equation.primitive.name,
            equation.primitive.name
            in (
                "debug_callback",
                "debug_print",
            ),
        )
        if "callback" in name and not prints:
            raise ValueError(
                f"a function of the run calls back into Python ({name}), whose results a snapshot"
                " cannot know: leave the call out, or the snapshot"
            )
        parts += [name.encode(), *map(atom, equation.invars), *map(atom, equation.outvars)]
        parts += [] if prints else [_of_value(equation.params, known)]
    return _joined("jaxpr", [*parts, *map(atom, jaxpr.outvars)])


def _joined(kind: str, parts: list[bytes]) -> bytes:
    """A hash of parts, each with its length, so that none can run into the next."""
    digest = hashlib.sha256(kind.encode())
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
