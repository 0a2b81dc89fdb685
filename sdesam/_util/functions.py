"""Functions that users hand in, as keys of compiled code.

What is compiled is kept by the function that it came from, so that a second run, or one with other
numbers, compiles nothing. But a Python function is more than its code: it reads globals, closures,
attributes of the object whose method it is. A :class:`Function` is the function AND the values of
what it reads, taken where it is about to be used. If one of them has changed it is another key, and
the function is traced anew. Compiled code is kept for the last functions only, so that a process
can go through any number of them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterable
from contextlib import nullcontext
from functools import lru_cache, partial, wraps
from types import FunctionType, MethodType
from typing import Any, TypeVar

import jax

from sdesam._util.holes import HOLE, bare, is_array, is_node, put, same_structure, take
from sdesam._util.precision import precisely
from sdesam._util.process import Failure
from sdesam._util.reading import Reader

__all__ = [
    "HOLE",
    "PROGRAMS",
    "Function",
    "bare",
    "check_known",
    "compiled",
    "failure",
    "is_array",
    "put",
    "same_structure",
    "take",
    "words",
]

PyTree = Any
T = TypeVar("T")

PROGRAMS = 32
"""Programs that are kept of each compiled function, the last ones used. With each stays the loss
that it was compiled for. On a CPU each takes some four hundred memory maps; with 65,530 of them XLA
crashes."""
_ASKS_FOR_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


def failure(what: str, error: Exception) -> Failure:
    """The error to raise where a function that a user handed in fails with another.

    >>> str(failure("drift(x0)", ZeroDivisionError("division by zero")))
    'drift(x0) fails with ZeroDivisionError: division by zero'
    """
    kind = "" if isinstance(error, _ASKS_FOR_VALUES) else f" with {type(error).__name__}"
    return Failure(f"{what} fails{kind}: {words(error)}")


def words(error: Exception) -> str:
    """What an error says, in one line."""
    if isinstance(error, _ASKS_FOR_VALUES):
        return (
            "it asks in Python for a value that jax only traces, as `if`, `float()` and functions"
            " of numpy do; use jnp.where or jax.lax.cond, and functions of jax.numpy"
        )
    return " ".join(str(error).strip().partition("\n")[0].split()) or "without a word"


# A worked example: the drift of two SDEs that differ in numbers, `_drift(kernel, x)`.
#
#     kernel                                         leaves                structure
#     TreeKernel(lr=0.1: drift=[-1, -.05], ...)      data, [-1, -.05]...   TreeKernel, loss, trees
#     TreeKernel(lr=0.2: drift=[-1, -.10], ...)      data, [-1, -.10]...   TreeKernel, loss, trees
#
# A kernel is a pytree: its leaves are arguments of the compiled function, and its structure holds
# the loss and the trees. Both structures are equal, so one program serves both. If a global that
# the loss reads has changed, the structures differ in the `Function` of the loss, and the second
# kernel is compiled anew.
#
# jax.jit alone would find the right program, too. But it never forgets: each structure that it has
# seen stays, with the loss of the user and the data that the loss may have captured. So every
# structure has a `jax.jit` of its own, which sees the leaves alone and puts the arguments together
# while it is traced. The last 32 of these are kept.


def compiled(static: int = 0) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """`jax.jit` of a function whose first `static` arguments are no arrays, traced
    :func:`precisely`.

    The other arguments are pytrees. An object among them that carries functions beside its numbers,
    such as the kernel of an SDE, has the functions in its structure: equal structures share a
    program. The last programs are kept, and with each of them the user's functions.
    """

    def decorate(fn: Callable[..., T]) -> Callable[..., T]:
        @lru_cache(maxsize=PROGRAMS)
        def program(structure: Any, *fixed: Hashable) -> Callable[..., T]:
            def traced(*leaves: Any) -> T:
                return fn(*fixed, *jax.tree.unflatten(structure, leaves))

            # jax names what it compiles, and what it measures, by the function
            traced.__name__ = traced.__qualname__ = fn.__name__
            return jax.jit(precisely(traced))

        @wraps(fn)
        def call(*arguments: Any) -> T:
            leaves, structure = jax.tree.flatten(arguments[static:])
            return program(structure, *arguments[:static])(*leaves)

        return call

    return decorate


# How a closure becomes a key:
#
#     scale = 2.0
#     def make(k):
#         def loss(x, a):
#             return scale * (x - a) ** k
#         return loss
#
# Function(make(2)).key is made of pairs of a path and what stands for the value there:
#
#     ""         ("object", 0)       the function itself, the first object that was looked at
#     "scale"    ("float", "2.0")    a global, found by its name in the code
#     "k"        ("int", "2")        a closure
#
# With scale = 3.0 the second pair differs: another key, and the loss is traced anew, as a reader of
# the script expects. With scale = 2.0 again the key is the old one and what was compiled serves. A
# second make(2) is another function object and another key, although its code is the same: code
# that is equal may belong to functions which a user means to be apart, and tracing once too often
# is right, only slower.


class Function:
    """A function that a user handed in, with the values of what it reads; equal ones are traced
    once.

    It reads module globals, and attributes of modules, classes and objects, by the names in its
    code; closures and defaults; arguments of a `functools.partial`; leaves of a pytree; and what
    functions of the user's own that it calls read. Numbers, strings and arrays count by their
    values, other objects by identity. What it changes itself while it is traced, such as a counter,
    does not count. Not seen are files, names put together at run time, and what C code holds.

    Args:
        fn: the function, or a `Function`.
        rest: what its first argument has beside arrays, with holes for these; see :func:`take`.
    """

    def __init__(self, fn: Any, rest: PyTree = None):
        if isinstance(fn, Function):
            fn, rest = fn.fn, fn.rest if rest is None else rest
        self.fn: Any = fn
        self.rest = rest
        read = self._read()
        self.key = tuple(read.values.items())
        self.traced = read.traced
        """The names of values that jax traces, such as an argument of a function under
        `jax.jit`.
        """
        told = tuple(item for item in self.key if item[0] and item[0] not in read.fixed)
        self._context = hash(told) if told else None
        self._hash = hash(self.key)
        self.__name__ = getattr(fn, "__name__", type(fn).__name__)
        if isinstance(fn, FunctionType):
            self.__wrapped__ = fn  # for the names of arguments and the lines in messages of jax

    @classmethod
    def apart(cls, fn: Any, rest: PyTree = None) -> tuple[Function, list[Any]]:
        """A function and the arrays that it holds, if it is a pytree.

        These are runtime values, handed to :meth:`filled`: others do not trace the function anew.
        """
        if isinstance(fn, MethodType) and is_node(fn.__self__):
            fn = jax.tree_util.Partial(fn.__func__, fn.__self__)
        fn, arrays = take(fn, is_array) if is_node(fn) else (fn, [])
        return cls(fn, rest), arrays

    def __call__(self, *arguments: Any) -> Any:
        """The function's value; called where it is traced, so once."""
        return self._call(self.fn, *arguments)

    def filled(self, arrays: list[Any]) -> Callable[..., Any]:
        """The function with these arrays in the place of its own."""
        return partial(self._call, put(self.fn, arrays)) if arrays else self

    def now(self) -> Function:
        """The function with what it reads at present; the same object if nothing has changed."""
        fresh = Function(self.fn, self.rest)
        return self if fresh == self else fresh

    def _call(self, fn: Any, first: Any, *others: Any) -> Any:
        # a module of equinox, say: runs carry its arrays, and the loss gets the module back
        if self.rest is not None and not same_structure(first, self.rest):
            first = put(self.rest, jax.tree.leaves(first))
        # a function that counts its calls would never be equal to itself: what has changed between
        # before and after the call is its own doing, and is left out of the key from now on
        before = self._read().values
        # jax keeps bodies of loops, and functions under jax.jit, by the function alone: it is told
        # of the values
        with nullcontext() if self._context is None or _TELL is None else _TELL(self._context):
            out = fn(first, *others)
        after = self._read().values
        if before != after:
            changed = {
                path for path in before.keys() | after.keys() if before.get(path) != after.get(path)
            }
            _written.setdefault(_code_of(self.fn), set()).update(changed)
        return out

    def _read(self) -> Reader:
        read = Reader(_written.get(_code_of(self.fn), frozenset()))
        read.visit("", self.fn, frozenset())
        if self.rest is not None:
            read.visit("x0", self.rest, frozenset())
        return read

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Function) and (
            self is other or (self._hash == other._hash and self.key == other.key)
        )

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return repr(self.fn)


def check_known(call: str, values: PyTree, functions: Iterable[Any]) -> None:
    """Refuse numbers that jax traces, among values or what functions read.

    A run is a loop on the host around compiled calls.
    """
    traced = [name for fn in functions if isinstance(fn, Function) for name in fn.traced]
    # a constant is traced where all is, under jax.jit
    if traced or any(
        isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((values, jax.numpy.zeros(())))
    ):
        raise TypeError(
            f"{call} runs outside of jax.jit, jax.grad and jax.vmap, but"
            f" {traced[0] if traced else 'an argument'!r} is traced by one of them: call it with"
            " known numbers; what can be called inside is a step, by sde.drift and sde.apply_noise"
            " or chain.step"
        )


_TELL = jax.make_user_context(None) if hasattr(jax, "make_user_context") else None
"""A setting that all that jax keeps depends on; older versions have none."""

_written: weakref.WeakKeyDictionary[Any, set[str]] = weakref.WeakKeyDictionary()
"""By function, or type of a callable object: the names of what it changes itself."""


def _code_of(fn: Any) -> Any:
    """A function whose code is run by calling `fn`, or else its type."""
    while isinstance(fn, (partial, MethodType)):
        fn = fn.func if isinstance(fn, partial) else fn.__func__
    return fn if isinstance(fn, FunctionType) else type(fn)
