"""The named terms of a modified equation: which kind, which power of `rho`, whole or its variance.

| name | kind | `rho` | what it is |
| --- | --- | --- | --- |
| `rho^2` | drift | 2 | the `rho^2` part of the mean step |
| `rho^2 variance` | drift, variance | 2 | that part minus its limit of independent samples |
| `eta` | correction | 0 | the whole correction, every power of `rho` |
| `eta rho^1` | correction | 1 | its `rho^1` part |
| `noise` | noise | 0 | the whole noise |
| `noise rho^1` | noise | 1 | its `rho^1` part |
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

Kind = Literal["drift", "correction", "noise"]
_PREFIX: dict[Kind, str] = {"drift": "", "correction": "eta", "noise": "noise"}
_NAME = re.compile(r"(?P<prefix>eta|noise|)(?: ?rho\^(?P<rho>\d))?(?P<variance> variance)?")


class Term(NamedTuple):
    """One term of an equation.

    Args:
        kind: `"drift"`, `"correction"` (`eta` times a drift) or `"noise"`.
        rho: the power of `rho`.
        variance: of a drift term, the part that samples make which are not independent.

    >>> print(Term("correction", 1), Term("noise", 0), Term("drift", 2, variance=True), sep=", ")
    eta rho^1, noise, rho^2 variance
    """

    kind: Kind
    rho: int
    variance: bool = False

    @classmethod
    def parse(cls, name: str) -> Term | None:
        """The term of a name, or None if no term can have it.

        >>> Term.parse("rho^1 variance")
        Term(kind='drift', rho=1, variance=True)
        >>> Term.parse("drift") is None
        True
        """
        found = _NAME.fullmatch(name)
        if found is None:
            return None
        kind = next(kind for kind, prefix in _PREFIX.items() if prefix == found["prefix"])
        term = cls(kind, int(found["rho"] or 0), bool(found["variance"]))
        return term if str(term) == name else None

    @property
    def eta(self) -> int:
        """The power of `eta` beside it in the drift: 1 for the correction."""
        return int(self.kind == "correction")

    @property
    def whole(self) -> Term:
        """The term that a variance is a part of."""
        return self._replace(variance=False)

    def covers(self, part: Term) -> bool:
        """Whether a part goes when this term is left out: `eta` and `noise` are every power."""
        every = self.kind != "drift" and self.rho == 0
        return self == part or (every and self.kind == part.kind)

    def __str__(self) -> str:
        power = f"rho^{self.rho}" if self.rho or self.kind == "drift" else ""
        words = (_PREFIX[self.kind], power, "variance" if self.variance else "")
        return " ".join(filter(None, words))
