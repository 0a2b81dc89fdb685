"""What a Python function reads beside its arguments, as values that can be compared.

Functions are not run for this. The names in their code say which globals, attributes and closures
they may look up, and each is followed to its value.
"""

from __future__ import annotations

import dis
import hashlib
import site
import sys
import sysconfig
import weakref
from collections.abc import Callable, Collection, Hashable
from functools import cached_property, lru_cache, partial
from itertools import count
from types import CodeType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

import jax
import numpy as np

from sdesam._util.holes import HOLE, is_node

_MOST = 10_000
"""So many values are looked at for one function; more are taken to stay as they are."""


_PLAIN = (bool, int, float, complex, str, bytes)
_ARRAYS = (np.generic, np.ndarray, jax.Array)
_CONTAINERS = (dict, list, tuple, set, frozenset)


# From a function's code to values: the bytecode of `lambda x: net.scale * x` loads the global
# `net` and the attribute `scale`. Only names can be read off it, not which attribute is asked of
# which object. So every object that is reached is asked for every attribute of these names that it
# has. That is too much and never too little: a value read in vain traces a function once more than
# needed, a value missed would serve old code for new numbers.


class Reader:
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
            # sets have no order of their own, and equal ones may be walked in different orders
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
        # a library does not change while a program runs, and its functions reach thousands of names
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
        if is_node(value):
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
    packages = [sys.modules[name].__file__ for name in ("sdesam", "jax", "numpy")]
    folders = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")] + [
        path.rpartition("/")[0] for path in packages if path
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
    # an id is given anew once its object is gone, so it is only good together with a reference that
    # says whether the object lives; a strong one would keep every array alive
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
    # a hash, so that the key of a data set does not keep a second copy of it
    array = np.ascontiguousarray(value)
    digest = (
        array.tobytes()
        if array.nbytes <= 64
        else hashlib.blake2b(array.view(np.uint8).data, digest_size=16).digest()
    )
    return "array", np.shape(value), str(array.dtype), digest
