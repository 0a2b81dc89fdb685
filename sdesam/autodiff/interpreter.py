"""One walk over the equations of a jaxpr, for values of any kind in the place of arrays.

A user of the walk follows some values: those that depend on parameters, those that are matrices of
weights. An equation that none of them enters needs no rule. For the others there is a table of
handlers by the name of the operation, and one handler for whatever the table does not name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jax.extend.core import Literal

Handler = Callable[[Any, list[Any]], list[Any]]
"""`(equation, values of its inputs) -> values of its outputs`."""

# A worked example, f(x, a) = sin(x) * (2 * a), of which jax makes three equations:
#
#     b = sin x        c = mul 2 a        d = mul b c
#
# A user that follows what depends on x gives the walk True for x and False for a. The first
# equation has a followed input and goes to the handler of `sin`, or to `otherwise`; the second has
# none and goes to `unfollowed`, which answers False; the third has b, and is handled again. The
# walk knows neither what True means nor what `sin` does: it keeps a table from variables to values,
# looks up the inputs of each equation, and stores the outputs.


@dataclass(frozen=True)
class Interpreter:
    """A jaxpr evaluated with values of the user's choice.

    Args:
        follows: whether a value is one that the user follows.
        handlers: by the name of an operation in jax, what is done where a followed value goes in.
        otherwise: what is done with all other operations that a followed value goes into.
        unfollowed: what is done where no followed value goes in; by default the operation itself.
        literal: the value that stands for a number written into the jaxpr; by default the number.

    >>> import jax
    >>> program = jax.make_jaxpr(lambda x, a: (jax.numpy.sin(x) * (2 * a), 3 * a))(1.0, 1.0)
    >>> depends = Interpreter(
    ...     bool, {}, lambda eqn, values: [True], lambda eqn, values: [False], lambda number: False
    ... )
    >>> depends.run(program.jaxpr, program.consts, [True, False])
    [True, False]
    """

    follows: Callable[[Any], bool]
    handlers: Mapping[str, Handler]
    otherwise: Handler
    unfollowed: Handler | None = None
    literal: Callable[[Any], Any] | None = None

    def run(self, jaxpr: Any, constants: Any, arguments: list[Any]) -> list[Any]:
        """The values of the outputs, from those of the constants and of the arguments.

        The arguments are leaves in jax's order, which is that of sorted keys for a dictionary.
        """
        known: dict[Any, Any] = dict(
            zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *arguments], strict=True)
        )

        def look(atom: Any) -> Any:
            if isinstance(atom, Literal):
                return atom.val if self.literal is None else self.literal(atom.val)
            return known[atom]

        for eqn in jaxpr.eqns:
            values = [look(atom) for atom in eqn.invars]
            if any(map(self.follows, values)):
                handler = self.handlers.get(eqn.primitive.name, self.otherwise)
            else:
                handler = self.unfollowed or evaluate
            known.update(zip(eqn.outvars, handler(eqn, values), strict=True))
        return [look(atom) for atom in jaxpr.outvars]


def evaluate(eqn: Any, values: list[Any]) -> list[Any]:
    """The outputs of an equation for arrays, by the operation itself."""
    # operations that hold functions, such as a custom derivative, store them in another form than
    # `bind` takes; the answer has been a pair up to jax 0.9 and is one dictionary from 0.10 on
    bound = eqn.primitive.get_bind_params(eqn.params)
    rules, params = bound if isinstance(bound, tuple) else ((), bound)
    out = eqn.primitive.bind(*rules, *values, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


def bodies(params: dict[str, Any]) -> list[Any]:
    """The jaxprs among the parameters of an operation: bodies of loops, branches, functions
    called.
    """
    found = []
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            inner = getattr(item, "jaxpr", item)
            if hasattr(inner, "eqns"):
                found.append(inner)
    return found


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a jaxpr, those in the bodies of its operations included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for body in bodies(eqn.params):
            yield from equations(body)
