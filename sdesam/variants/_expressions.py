"""Rules as expressions: what a paper's pseudocode says, as a value.

The direction of one micro-batch `I` is a sum of gradients, each at a point that may be moved along
other gradients:

    F_I(x) = sum_k a_k grad f_{S_k}(x + rho u_k)
    u ::= grad f_S(x + rho u') | a u + a' u' | u / sqrt(|w|^2 + eps^2) | z | t(x) * u

The step is `x+ = x - lr G`, with `G` the mean of `F_I` over the micro-batches of a mini-batch. One
expression is read by three parts of the package: by the algebra, which derives the SDE, by the jax
step, and by the printer. Expressions are compared by what they say, so that a gradient that occurs
twice is computed once.

An example, SAM with a gradient of the micro-batch from which a part of the full gradient is taken:

>>> from sdesam.variants import gradient, parameter, unit
>>> own = gradient("micro")
>>> print(gradient("micro", at=unit(own - parameter("sigma") * gradient("data"))))
gradient(micro, at=unit(gradient(micro) - sigma gradient(data)))
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from operator import mul
from typing import Any, Literal, get_args

from sdesam._util.names import unknown

DirectionLaw = Literal["gaussian", "rademacher"]
SCOPES = ("micro", "batch", "data", "fresh")
_FRESH = re.compile(r"fresh( [1-9]\d*)?")
_RESERVED = frozenset(
    (
        *("lr", "rho", "eps", "lam", "norms", "batch", "micro", "replace", "momentum", "nesterov"),
        *("weight_decay", "schedule", "variant", "problem", "expectation", "order", "key"),
        *("micro_batches", "eta", "epsilon", "b", "m", "n"),
        *("loss", "optimizer", "groups", "has_aux", "has_key", "axis_name", "perturbation"),
    )
)
"""Names that stand for something else wherever a rule's own numbers are given."""


class Fresh(str):
    """The scope of a micro-batch that is drawn apart from the mini-batch; `fresh(2)` is another."""

    __slots__ = ()

    def __call__(self, number: int) -> Fresh:
        """The `number`-th of several independent micro-batches."""
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"fresh({number!r}): it must be a whole number of at least 1")
        return Fresh("fresh" if number == 1 else f"fresh {number}")


fresh = Fresh("fresh")
"""The scope of a micro-batch that is drawn apart from the mini-batch."""


# A scalar is a polynomial in the rule's own numbers, with exact coefficients: the pair of a tuple
# of names and a fraction for each monomial. So 1 - 2 a is ((("a",), -2), ((), 1)), sorted. Two
# expressions that say the same are then equal as data, and nothing here needs a computer algebra.


@dataclass(frozen=True, order=True)
class Scalar:
    """A number of a rule: a polynomial in its parameters, made by arithmetic with
    :func:`parameter`.

    >>> a = parameter("a")
    >>> print(1 - a, (1 - a) * a, a / 2, sep="; ")
    1 - a; a - a^2; 1/2 a
    """

    terms: tuple[tuple[tuple[str, ...], Fraction], ...] = ()

    @classmethod
    def of(cls, value: Any) -> Scalar:
        """A number or a scalar as a scalar; a float means the decimal that it prints as."""
        if isinstance(value, Scalar):
            return value
        if isinstance(value, bool) or not isinstance(value, (int, float, Fraction)):
            raise TypeError(
                f"{value!r} multiplies no vector: it must be a number or parameter('name')"
            )
        try:
            exact = Fraction(str(value)) if isinstance(value, float) else Fraction(value)
        except ValueError:
            raise ValueError(f"{value!r} multiplies no vector: it must be finite") from None
        return cls((((), exact),) if exact else ())

    @property
    def names(self) -> frozenset[str]:
        """The parameters that occur."""
        return frozenset(name for names, _ in self.terms for name in names)

    def value(self, numbers: Mapping[str, Any]) -> Any:
        """The scalar where its parameters are `numbers`, of whatever type these are."""
        return sum(
            reduce(mul, (numbers[name] for name in names), _plain(c)) for names, c in self.terms
        )

    def __add__(self, other: Any) -> Scalar:
        total: dict[tuple[str, ...], Fraction] = {}
        for names, c in (*self.terms, *Scalar.of(other).terms):
            total[names] = total.get(names, Fraction(0)) + c
        return Scalar(tuple(sorted((names, c) for names, c in total.items() if c)))

    def __mul__(self, other: Any) -> Any:
        return other * self if isinstance(other, Vector) else self._times(other)

    def _times(self, other: Any) -> Scalar:
        products = (
            Scalar(((tuple(sorted((*a, *b))), c * d),))
            for a, c in self.terms
            for b, d in Scalar.of(other).terms
        )
        return reduce(Scalar.__add__, products, Scalar())

    def __truediv__(self, other: Any) -> Scalar:
        return self._times(1 / _number(other))

    def __neg__(self) -> Scalar:
        return self._times(-1)

    def __sub__(self, other: Any) -> Scalar:
        return self + -Scalar.of(other)

    def __rsub__(self, other: Any) -> Scalar:
        return Scalar.of(other) + -self

    __radd__ = __add__
    __rmul__ = __mul__

    def __str__(self) -> str:
        return _joined([(c, _monomial(names)) for names, c in self.terms])


def _plain(value: Fraction) -> Any:
    return int(value) if value.denominator == 1 else float(value)


def _number(value: Any) -> Fraction:
    """The number that a vector or a scalar is divided by."""
    by = Scalar.of(value)
    if by.names or not by.terms:
        raise ValueError(f"division by {value}: it must be a number other than 0")
    return by.terms[0][1]


def _monomial(names: tuple[str, ...]) -> str:
    powers = {name: names.count(name) for name in dict.fromkeys(names)}
    return " ".join(f"{name}^{k}" if k > 1 else name for name, k in powers.items())


def _joined(terms: list[tuple[Fraction, str]]) -> str:
    """`a x - b y` of pairs of numbers and texts."""
    pieces = []
    for c, body in terms:
        size = "" if abs(c) == 1 and body else f"{abs(c)}"
        pieces.append(("- " if c < 0 else "+ ") + f"{size} {body}".strip())
    line = " ".join(pieces) or "0"
    return line[2:] if line.startswith("+ ") else line.replace("- ", "-", 1)


def parameter(name: str) -> Scalar:
    """A number of the rule's own, which is given by this name where the rule is run.

    Raises:
        ValueError: the name is no identifier, or one that stands for something else.
        TypeError: the name is no text.

    >>> parameter("rho")
    Traceback (most recent call last):
    ...
    ValueError: parameter('rho'): the name stands for something else already; choose another
    """
    if not isinstance(name, str):
        raise TypeError(f"parameter({name!r}): the name must be text")
    if not name.isidentifier() or name.startswith("_"):
        raise ValueError(f"parameter({name!r}): the name must be a word, such as 'sigma'")
    if name in _RESERVED:
        raise ValueError(
            f"parameter({name!r}): the name stands for something else already; choose another"
        )
    return Scalar((((name,), Fraction(1)),))


class Vector:
    """A vector in the space of the parameters: sums, and multiples by numbers and parameters."""

    @property
    def parts(self) -> tuple[Vector, ...]:
        """The vectors that it is made of."""
        return ()

    def walk(self) -> Iterator[Vector]:
        """Every vector that occurs in it, itself first."""
        yield self
        for part in self.parts:
            yield from part.walk()

    @property
    def scopes(self) -> frozenset[str]:
        """Whose samples it depends on; `"direction"` where it draws random directions."""
        found = {v.scope for v in self.walk() if isinstance(v, (Gradient, Gibbs))}
        if any(isinstance(v, RandomDirection) for v in self.walk()):
            found.add("direction")
        return frozenset(found)

    @property
    def parameters(self) -> frozenset[str]:
        """The names of the numbers of its own."""
        sums = (v for v in self.walk() if isinstance(v, Sum))
        return frozenset(name for v in sums for c, _ in v.terms for name in c.names)

    def __add__(self, other: Any) -> Vector:
        return _sum([*_terms(self), *_terms(check_vector("+", other))])

    def __sub__(self, other: Any) -> Vector:
        return self + -check_vector("-", other)

    def __mul__(self, factor: Any) -> Vector:
        if isinstance(factor, Vector):
            raise TypeError(f"{self} times {factor}: a vector is multiplied by numbers alone")
        return _sum([(Scalar.of(factor) * c, v) for c, v in _terms(self)])

    def __truediv__(self, divisor: Any) -> Vector:
        if isinstance(divisor, Vector):
            raise TypeError(f"{self} over {divisor}: use unit(v, norm_of=w) to divide by a norm")
        return self * (1 / _number(divisor))

    def __neg__(self) -> Vector:
        return self * -1

    __rmul__ = __mul__


@dataclass(frozen=True)
class Gradient(Vector):
    """`grad f_S(x + rho u)`: see :func:`gradient`."""

    scope: str
    at: Vector | None = None

    @property
    def parts(self) -> tuple[Vector, ...]:
        return () if self.at is None else (self.at,)

    def __str__(self) -> str:
        return f"gradient({self.scope}{'' if self.at is None else f', at={self.at}'})"


@dataclass(frozen=True)
class Gibbs(Vector):
    """`sum_i p_i grad f_i(x + rho u)` with Gibbs weights: see :func:`gibbs`."""

    scope: str
    at: Vector | None = None

    @property
    def parts(self) -> tuple[Vector, ...]:
        return () if self.at is None else (self.at,)

    def __str__(self) -> str:
        return f"gibbs({self.scope}{'' if self.at is None else f', at={self.at}'})"


@dataclass(frozen=True)
class Unit(Vector):
    """`v / sqrt(|w|^2 + eps^2)`: see :func:`unit`."""

    vector: Vector
    norm_of: Vector

    @property
    def parts(self) -> tuple[Vector, ...]:
        return (self.vector,) if self.norm_of == self.vector else (self.vector, self.norm_of)

    def __str__(self) -> str:
        other = "" if self.norm_of == self.vector else f", norm_of={self.norm_of}"
        return f"unit({self.vector}{other})"


@dataclass(frozen=True)
class Sum(Vector):
    """A linear combination; made by `+`, `-` and `*`."""

    terms: tuple[tuple[Scalar, Vector], ...]

    @property
    def parts(self) -> tuple[Vector, ...]:
        return tuple(vector for _, vector in self.terms)

    def __str__(self) -> str:
        pieces = []
        for c, vector in self.terms:
            if len(c.terms) == 1:
                ((names, number),) = c.terms
                pieces.append((number, f"{_monomial(names)} {vector}".strip()))
            else:
                pieces.append((Fraction(1), f"({c}) {vector}"))
        return _joined(pieces)


@dataclass(frozen=True)
class RandomDirection(Vector):
    """`z`, with `E z = 0` and `E z z^T = I`: see :func:`random_direction`."""

    law: DirectionLaw

    def __str__(self) -> str:
        return f"random_direction({self.law})"


@dataclass(frozen=True)
class Elementwise(Vector):
    """`t(x) * v`, entry by entry: see :func:`elementwise`."""

    transform: Callable[[Any], Any]
    vector: Vector

    @property
    def parts(self) -> tuple[Vector, ...]:
        return (self.vector,)

    def __str__(self) -> str:
        name = getattr(self.transform, "__name__", type(self.transform).__name__)
        return f"elementwise({name}, {self.vector})"


@dataclass(frozen=True)
class Rejection(Vector):
    """`v - (v . w) w / |w|^2`: see :func:`reject`."""

    vector: Vector
    axis: Vector

    @property
    def parts(self) -> tuple[Vector, ...]:
        return (self.vector, self.axis)

    def __str__(self) -> str:
        return f"reject({self.vector}, {self.axis})"


def _terms(vector: Vector) -> tuple[tuple[Scalar, Vector], ...]:
    return vector.terms if isinstance(vector, Sum) else ((Scalar.of(1), vector),)


def _sum(terms: list[tuple[Scalar, Vector]]) -> Vector:
    """A combination with each vector once, in the order in which they first occur."""
    total: dict[Vector, Scalar] = {}
    for c, vector in terms:
        total[vector] = total.get(vector, Scalar()) + c
    kept = tuple((c, vector) for vector, c in total.items() if c.terms)
    if len(kept) == 1 and kept[0][0] == Scalar.of(1):
        return kept[0][1]
    return Sum(kept)


def check_vector(what: str, value: Any) -> Vector:
    """`value` as a vector that is not zero for certain, or one sentence."""
    if not isinstance(value, Vector):
        raise TypeError(
            f"{what}={value!r}: it must be a vector of a rule, such as gradient('micro')"
        )
    if isinstance(value, Sum) and not value.terms:
        raise ValueError(f"{what}: the vector is zero, for its terms cancel; leave it out")
    return value


def _check_scope(scope: Any) -> str:
    if isinstance(scope, str) and (scope in SCOPES or _FRESH.fullmatch(scope)):
        return str(scope)
    raise unknown("scope", scope, SCOPES)


def gradient(scope: str, at: Vector | None = None) -> Vector:
    """The gradient `grad f_S(x + rho u)` of the mean loss of some samples.

    Args:
        scope: whose mean loss: `"micro"` (the micro-batch `I`), `"batch"` (the whole mini-batch),
            `"data"` (the data set) or :data:`fresh` (a micro-batch that is drawn apart).
        at: `u`, the perturbation without its radius; left out, 0.

    Raises:
        ValueError: an unknown scope, a perturbation that is zero.
        TypeError: a perturbation that is no vector.

    >>> print(gradient("micro", at=gradient("micro")))
    gradient(micro, at=gradient(micro))
    """
    return Gradient(_check_scope(scope), None if at is None else check_vector("at", at))


def gibbs(scope: str, at: Vector | None = None) -> Vector:
    """The weighted gradient `sum_i p_i grad f_i(x + rho u)` of the samples of a batch, with `p_i`
    proportional to `exp(lam nu_i)` and `nu_i` an estimate of `|g_i(x)|`
    (:class:`sdesam.NormEstimate`).

    Args:
        scope: `"micro"` or `"batch"`.
        at: `u`; left out, 0. The weights are those at `x`.

    Source: Luo et al., arXiv 2509.18001, section 4.

    >>> print(gradient("batch", at=unit(gibbs("batch"))))
    gradient(batch, at=unit(gibbs(batch)))
    """
    if _check_scope(scope) not in ("micro", "batch"):
        raise ValueError(
            f"gibbs({scope!r}): weights are those of the samples of a batch; choose 'micro' or"
            " 'batch'"
        )
    return Gibbs(str(scope), None if at is None else check_vector("at", at))


def unit(vector: Vector, norm_of: Vector | None = None) -> Vector:
    """The normalised vector `v / sqrt(|w|^2 + eps^2)`; 0 where that norm vanishes and `eps = 0`.

    Args:
        vector: `v`.
        norm_of: `w`; left out, `v`.

    >>> print(unit(gradient("batch"), norm_of=gradient("data")))
    unit(gradient(batch), norm_of=gradient(data))
    """
    vector = check_vector("unit", vector)
    return Unit(vector, vector if norm_of is None else check_vector("norm_of", norm_of))


def random_direction(law: DirectionLaw = "gaussian") -> Vector:
    """A random vector `z` of mean 0 and covariance `I`, one draw for each micro-batch.

    Args:
        law: of its independent entries: `"gaussian"` or `"rademacher"`.

    >>> print(gradient("micro", at=random_direction()))
    gradient(micro, at=random_direction(gaussian))
    """
    if law not in get_args(DirectionLaw):
        raise unknown("law", law, get_args(DirectionLaw))
    return RandomDirection(law)


def elementwise(transform: Callable[[Any], Any], vector: Vector) -> Vector:
    """The vector `t(x) * v`, entry by entry.

    Args:
        transform: `t`, of one array of parameters to an array of the same shape, in jax.
        vector: `v`.

    The algebra has no trees for it; such a rule runs, and its SDE is made by numbers.

    >>> def size(x):
    ...     return abs(x) + 0.01
    >>> print(elementwise(size, gradient("micro")))
    elementwise(size, gradient(micro))
    """
    if not callable(transform):
        raise TypeError(f"elementwise({transform!r}, ...): it must be a function of an array")
    return Elementwise(transform, check_vector("elementwise", vector))


def reject(vector: Vector, axis: Vector) -> Vector:
    """The part of a vector that is orthogonal to another, `v - (v . w) w / |w|^2`; `v` itself where
    `w` vanishes.

    The algebra has no trees for it; such a rule runs, and its SDE is made by numbers.

    >>> print(reject(gradient("micro"), gradient("data")))
    reject(gradient(micro), gradient(data))
    """
    return Rejection(check_vector("reject", vector), check_vector("axis", axis))


_SCOPE_LETTERS = {"micro": "I", "batch": r"\gamma", "data": "", "fresh": "J"}


def latex(vector: Vector) -> str:
    """The vector as LaTeX: `\\nabla f_I(x + \\rho u)`.

    >>> print(latex(gradient("micro", at=unit(gradient("micro")))))
    \\nabla f_{I}\\left(x + \\rho \\frac{\\nabla f_{I}(x)}{\\|\\nabla f_{I}(x)\\|}\\right)
    """
    if isinstance(vector, (Gradient, Gibbs)):
        name, _, which = vector.scope.partition(" ")
        letter = _SCOPE_LETTERS[name] + (f"_{{{which}}}" if which else "")
        below = f"_{{{letter}}}" if letter else ""
        head = rf"\nabla f{below}"
        if isinstance(vector, Gibbs):
            head = rf"\textstyle\sum_{{i \in {letter}}} p_i \nabla f_i"
        if vector.at is None:
            return f"{head}(x)"
        at = latex(vector.at)
        at = rf"\left({at}\right)" if isinstance(vector.at, Sum) else at
        return rf"{head}\left(x + \rho {at}\right)"
    if isinstance(vector, Unit):
        return rf"\frac{{{latex(vector.vector)}}}{{\|{latex(vector.norm_of)}\|}}"
    if isinstance(vector, Sum):
        pieces = []
        for c, part in vector.terms:
            if len(c.terms) > 1:
                pieces.append((Fraction(1), rf"\left({_greek(str(c))}\right) {latex(part)}"))
            else:
                ((names, number),) = c.terms
                pieces.append((number, f"{_greek(_monomial(names))} {latex(part)}".strip()))
        return _joined(pieces)
    if isinstance(vector, RandomDirection):
        return "z"
    if isinstance(vector, Rejection):
        return rf"P_{{{latex(vector.axis)}}}^\perp {latex(vector.vector)}"
    assert isinstance(vector, Elementwise)
    return rf"t(x) \odot {latex(vector.vector)}"


_GREEK = frozenset(
    (
        *("alpha", "beta", "gamma", "delta", "zeta", "theta", "kappa", "lambda", "mu", "nu"),
        *("xi", "sigma", "tau", "phi", "chi", "psi", "omega"),
    )
)


def _greek(text: str) -> str:
    """Names of Greek letters as such; longer names upright."""

    def symbol(found: re.Match[str]) -> str:
        name = found[0]
        if name in _GREEK:
            return rf"\{name}"
        return name if len(name) == 1 else rf"\mathrm{{{name}}}"

    return re.sub(r"[A-Za-z][A-Za-z_0-9]*", symbol, text)
