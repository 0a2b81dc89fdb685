"""Functions that users hand in, as keys of compiled code.

What is compiled is kept by the function that it came from, so that a second run, or one with other
numbers, compiles nothing. But a Python function is more than its code: it reads globals, closures,
attributes of the object whose method it is. A :class:`Function` is the function AND the values of
what it reads, taken where it is about to be used. If one of them has changed it is another key, and
the function is traced anew. Compiled code is kept for the last functions only, so that a process
can go through any number of them.
"""

from __future__ import annotations

import dis
import hashlib
import site
import sys
import sysconfig
import weakref
from collections.abc import Callable, Collection, Hashable, Iterable
from contextlib import nullcontext
from functools import cached_property, lru_cache, partial, wraps
from itertools import count
from types import CodeType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any, TypeVar

import jax
import numpy as np

from sdesam._precision import precisely
from sdesam._process import Failure

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
_MOST = 10_000
"""So many values are looked at for one function; more are taken to stay as they are."""


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

            traced.__name__ = traced.__qualname__ = fn.__name__
            return jax.jit(precisely(traced))

        @wraps(fn)
        def call(*arguments: Any) -> T:
            leaves, structure = jax.tree.flatten(arguments[static:])
            return program(structure, *arguments[:static])(*leaves)

        return call

    return decorate


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
        if isinstance(fn, MethodType) and _is_node(fn.__self__):
            fn = jax.tree_util.Partial(fn.__func__, fn.__self__)
        fn, arrays = take(fn, is_array) if _is_node(fn) else (fn, [])
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
        if self.rest is not None and not same_structure(first, self.rest):
            first = put(self.rest, jax.tree.leaves(first))
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

    def _read(self) -> _Reader:
        read = _Reader(_written.get(_code_of(self.fn), frozenset()))
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


class _Hole:
    """The place of an array that is handed in later."""


HOLE = _Hole()


def take(tree: PyTree, wanted: Callable[[Any], bool]) -> tuple[PyTree, list[Any]]:
    """A pytree with holes in the places of the wanted leaves, and these.

    >>> take([1.0, "a", 2.0], lambda leaf: isinstance(leaf, float))[1]
    [1.0, 2.0]
    """
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, [HOLE if wanted(leaf) else leaf for leaf in leaves]), [
        leaf for leaf in leaves if wanted(leaf)
    ]


def put(tree: PyTree, leaves: list[Any]) -> PyTree:
    """A pytree with its holes filled, in their order."""
    each = iter(leaves)
    return jax.tree.map(lambda leaf: next(each) if leaf is HOLE else leaf, tree)


def bare(tree: PyTree, rest: PyTree) -> PyTree:
    """A pytree without what it has beside arrays, where that is of the structure of `rest`."""
    if rest is None or not same_structure(tree, rest):
        return tree
    return jax.tree.map(lambda leaf, own: leaf if own is HOLE else None, tree, rest)


def same_structure(tree: PyTree, other: PyTree) -> bool:
    """Whether two pytrees differ in their leaves at most."""
    return bool(jax.tree.structure(tree) == jax.tree.structure(other))  # type: ignore[operator]


def is_array(value: Any) -> bool:
    """Whether it is an array that jax can compute with."""
    return isinstance(value, jax.Array) or (
        isinstance(value, np.ndarray) and not value.dtype.hasobject
    )


def _is_node(value: Any) -> bool:
    """Whether it is a pytree, and no leaf."""
    return not jax.tree_util.treedef_is_leaf(jax.tree.structure(value))


def _code_of(fn: Any) -> Any:
    """A function whose code is run by calling `fn`, or else its type."""
    while isinstance(fn, (partial, MethodType)):
        fn = fn.func if isinstance(fn, partial) else fn.__func__
    return fn if isinstance(fn, FunctionType) else type(fn)


_PLAIN = (bool, int, float, complex, str, bytes)
_ARRAYS = (np.generic, np.ndarray, jax.Array)
_CONTAINERS = (dict, list, tuple, set, frozenset)


class _Reader:
    """What a function reads: by the name under which it is reached, what differs where the value
    does.
    """

    def __init__(self, written: Collection[str]):
        self.values: dict[str, Hashable] = {}
        self.fixed: set[str] = set()
        """The names of modules, functions and classes of libraries."""
        self.traced: list[str] = []
        self._written = written
        self._seen: set[Any] = set()

    def visit(self, path: str, value: Any, names: frozenset[str]) -> None:
        """Take note of a value.

        Of an object that is no number, array or container, attributes are read that have one of
        `names`.
        """
        if len(self.values) >= _MOST:
            return
        if value is None or isinstance(value, _PLAIN):
            self._note(path, (type(value).__name__, repr(value)))
        elif isinstance(value, _ARRAYS):
            self._array(path, value)
        elif isinstance(value, _CONTAINERS):
            self._container(path, value, names)
        elif isinstance(value, partial):
            self.visit(path, value.func, names)
            self.visit(f"{path}(arguments)", [*value.args, value.keywords], names)
        elif isinstance(value, FunctionType):
            self._function(path, value, names)
        elif isinstance(value, MethodType) and isinstance(value.__func__, FunctionType):
            self._function(path, value.__func__, names, value.__self__)
        elif value is HOLE:
            self._note(path, "array")
        elif hasattr(type(value), "__reads__"):
            self.visit(path, value.__reads__(), names)
        else:
            self._object(path, value, names | {"__call__"})

    def _note(self, path: str, value: Hashable, fixed: bool = False) -> None:
        if path not in self._written:
            self.values[path] = value
            if fixed:
                self.fixed.add(path)

    def _array(self, path: str, value: Any) -> None:
        if isinstance(value, jax.core.Tracer):
            self.traced.append(path)
            self._note(path, _identity(value))
        elif isinstance(value, jax.Array):
            self._note(path, _of_jax(value))
        elif value.dtype.hasobject:
            self._note(path, _identity(value))
        else:
            self._note(path, _of_numpy(value))

    def _container(self, path: str, value: Any, names: frozenset[str]) -> None:
        self._note(path, (type(value).__name__, len(value)))
        if self._first(value, names):
            items = (
                value.items()
                if isinstance(value, dict)
                else enumerate(
                    sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value
                )
            )
            for key, item in items:
                self.visit(f"{path}[{key!r}]", item, names)

    def _function(
        self, path: str, fn: FunctionType, names: frozenset[str], receiver: Any = None
    ) -> None:
        foreign = _foreign(fn.__code__.co_filename)
        self._note(path, _identity(fn), foreign)
        if not self._first(fn, names, receiver):
            return
        if hasattr(fn, "__wrapped__"):
            self.visit(_joined(path, "__wrapped__"), fn.__wrapped__, names)
        if foreign and path:  # one that was handed in is read in any case
            return
        free, attributes = _names(fn.__code__)
        for name in free & fn.__globals__.keys():
            self.visit(_joined(path, name), fn.__globals__[name], attributes)
        for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
            try:
                value = cell.cell_contents
            except ValueError:  # not assigned yet
                continue
            self.visit(_joined(path, name), value, attributes)
        for k, value in enumerate(fn.__defaults__ or ()):
            self.visit(f"{path}(default {k})", value, attributes)
        for name, value in (fn.__kwdefaults__ or {}).items():
            self.visit(f"{path}({name})", value, attributes)
        for name in names & vars(fn).keys():
            self.visit(_joined(path, name), vars(fn)[name], attributes)
        if receiver is not None:
            self.visit(_joined(path, "self"), receiver, attributes)

    def _object(self, path: str, value: Any, names: frozenset[str]) -> None:
        if not self._first(value, names):
            return
        shared = isinstance(value, (type, ModuleType))
        kind = value if isinstance(value, type) else type(value)
        home = value if isinstance(value, ModuleType) else sys.modules.get(kind.__module__)
        foreign = getattr(home, "__name__", "") in sys.builtin_module_names or _foreign(
            getattr(home, "__file__", None)
        )
        if _is_node(value):
            self._pytree(path, value, names)
        else:
            self._note(path, _identity(value), foreign and shared)
        if foreign and (shared or hasattr(value, "__wrapped__")):
            if not shared:  # a function under jax.jit or the like
                self.visit(_joined(path, "__wrapped__"), value.__wrapped__, names)
            return
        own = _attributes(value)
        # what methods of a library read is not known, nor what lies under names that are no
        # attributes
        if not shared and (foreign or hasattr(kind, "__getattr__") or hasattr(kind, "__getitem__")):
            names = names | {
                name
                for name, item in own.items()
                if isinstance(item, (*_PLAIN, *_ARRAYS, *_CONTAINERS))
            }
        for name in names:
            if name in own:
                self.visit(_joined(path, name), own[name], names)
            elif not isinstance(value, ModuleType):
                self._class_attribute(path, value, kind, name, names)

    def _pytree(self, path: str, value: Any, names: frozenset[str]) -> None:
        leaves, structure = jax.tree.flatten(value)
        try:
            hash(structure)
            self._note(path, structure)
        except TypeError:  # a field that is no leaf and has no hash
            self._note(path, _identity(value))
        for k, leaf in enumerate(leaves):
            self.visit(f"{path}[{k}]", leaf, names)

    def _class_attribute(
        self, path: str, owner: Any, kind: type, name: str, names: frozenset[str]
    ) -> None:
        """An attribute that lies in a class: a method, a property, a slot, or a value that its
        objects share.
        """
        found = next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), None)
        if isinstance(found, property):
            found = found.fget
        elif isinstance(found, (classmethod, staticmethod)):
            found = found.__func__
        elif isinstance(found, cached_property):
            found = found.func
        if isinstance(found, FunctionType):
            self._function(_joined(path, name), found, names, owner)
        elif isinstance(found, MemberDescriptorType):
            if not isinstance(owner, type) and hasattr(owner, name):
                self.visit(_joined(path, name), getattr(owner, name), names)
        elif isinstance(found, (*_PLAIN, *_ARRAYS, *_CONTAINERS)):
            self.visit(_joined(path, name), found, names)

    def _first(self, *what: Any) -> bool:
        """Whether this is the first time, so that circles end."""
        mark = tuple(item if isinstance(item, frozenset) else id(item) for item in what)
        new = mark not in self._seen
        self._seen.add(mark)
        return new


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _attributes(value: Any) -> dict[str, Any]:
    try:
        return vars(value)  # type: ignore[no-any-return]
    except TypeError:
        return {}


@lru_cache(maxsize=4096)
def _names(code: CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """The names of globals that code reads, and all names and strings in it that may be those of
    attributes.
    """
    free = {
        step.argval
        for step in dis.get_instructions(code)
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    }
    attributes = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            inner_free, inner_attributes = _names(constant)
            free, attributes = free | inner_free, attributes | inner_attributes
        elif isinstance(constant, str) and constant.isidentifier():
            attributes.add(constant)
    return frozenset(free), frozenset(attributes)


@lru_cache(maxsize=1)
def _libraries() -> tuple[str, ...]:
    """The folders of what is installed, Python's own modules and this package among it."""
    paths = sysconfig.get_paths()
    own = [path for path in (__file__, jax.__file__, np.__file__) if path]
    folders = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")] + [
        path.rpartition("/")[0] for path in own
    ]
    return tuple(
        folder + "/" for folder in {*folders, *site.getsitepackages(), site.getusersitepackages()}
    )


@lru_cache(maxsize=4096)
def _foreign(file: str | None) -> bool:
    """Whether a source file is of a library, which does not change while a program runs."""
    return file is not None and file.startswith((*_libraries(), "<frozen"))


_serials = count()
_known: dict[int, tuple[weakref.ref[Any], Hashable]] = {}
"""By `id`: a live object, and what stands for it."""


class _Same:
    """An object that cannot be referred to weakly, equal to itself."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def _remembered(value: Any, stands: Callable[[], Hashable]) -> Hashable:
    """What stands for an object, found once in its life."""
    number = id(value)
    known = _known.get(number)
    if known is not None and known[0]() is value:
        return known[1]
    try:
        reference = weakref.ref(
            value,
            lambda gone: (
                _known.pop(number, None) if _known.get(number, (None,))[0] is gone else None
            ),
        )
    except TypeError:
        return _Same(value)
    _known[number] = (reference, stands())
    return _known[number][1]


def _identity(value: Any) -> Hashable:
    """A number that no other object has had."""
    return _remembered(value, lambda: ("object", next(_serials)))


def _of_jax(value: jax.Array) -> Hashable:
    """The value of an array that cannot change; its bytes are read once."""

    def read() -> Hashable:
        if not value.is_fully_addressable or value.is_deleted():
            return "array", next(_serials)
        keys = jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key)
        return str(value.aval), _of_numpy(np.asarray(jax.random.key_data(value) if keys else value))

    return _remembered(value, read)


def _of_numpy(value: Any) -> Hashable:
    """The value of an array, of whose bytes a hash is kept."""
    array = np.ascontiguousarray(value)
    digest = (
        array.tobytes()
        if array.nbytes <= 64
        else hashlib.blake2b(array.view(np.uint8).data, digest_size=16).digest()
    )
    return "array", np.shape(value), str(array.dtype), digest
