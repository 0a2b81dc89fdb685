"""What commands share: checks of their arguments, and what they print and write."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdesam._util.loading import is_users_own, users_own, with_article
from sdesam._util.terminal import CouldNotFinish, check_files, deliver, own_output, say
from sdesam.cli import _options as option
from sdesam.sampling import check_own
from sdesam.symbolic import derive as derive_symbolic
from sdesam.symbolic.equation import ModifiedEquation
from sdesam.variants import NormEstimate, Variant
from sdesam.variants import variant as find_variant
from sdesam.variants._base import Law

if TYPE_CHECKING:
    from sdesam.ensemble import Result
    from sdesam.problems import FiniteSum


@dataclass(frozen=True)
class RuleRequest:
    """What `simulate`, `train` and `compare` are asked alike: a rule, its numbers, a problem."""

    variant: str
    problem_name: str
    problem_args: tuple[tuple[str, Any], ...]
    lr: float
    rho: float | None
    batch: int
    replace: bool
    eps: float
    lam: float | None
    law: Law | None
    directions: int | None
    square: bool | None
    delta: float | None
    own: tuple[tuple[str, Any], ...]

    @property
    def numbers(self) -> dict[str, float]:
        """The rule's own numbers, once the rule is known to have these and no others."""
        return check_own(self.load_variant(), dict(self.own))

    def load_variant(self) -> Variant:
        """The rule."""
        return load_variant(self.variant)

    def load_problem(self) -> FiniteSum:
        """The problem."""
        return load_problem(self.problem_name, self.problem_args)

    @property
    def problem_config(self) -> dict[str, Any]:
        """How the problem was named, for the configuration of a result."""
        return {"problem_spec": self.problem_name, "problem_args": dict(self.problem_args)}

    def norm_estimate(self) -> NormEstimate | None:
        """What --norms, --directions, --square and --delta ask for; None where none is given."""
        if self.law == "exact" and self.delta is not None:
            raise ValueError(
                f"--delta {self.delta:g}: exact norms are taken from gradients, not from"
                " differences; leave --delta out"
            )
        names = ("law", "directions", "square", "delta")
        asked: dict[str, Any] = {
            name: value for name in names if (value := getattr(self, name)) is not None
        }
        return NormEstimate(**asked) if asked else None


def rule_request(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a :class:`RuleRequest`, given to the command as one argument, `rule`."""

    @wraps(command)
    def gathered(**given: Any) -> Any:
        asked = {each.name: given.pop(each.name) for each in fields(RuleRequest)}
        return command(rule=RuleRequest(**asked), **given)

    options = option.several(option.variant, option.setting, option.perturbation, option.replace)
    return options(gathered)


def derive_equation(
    variant: Variant, order: tuple[int, ...], replace: bool, removed: Sequence[str]
) -> ModifiedEquation:
    """The equation of a variant without the terms that --without names."""
    equation = derive_symbolic(variant, order, replace)  # type: ignore[arg-type]
    for term in removed:
        equation = equation.without(term)
    return equation


def as_word(value: Any) -> str:
    """The value of an option as it is typed."""
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def listed(options: dict[str, Any]) -> str:
    """Options with their defaults, as they are typed."""
    return ", ".join(
        name if value is None else f"{name}={as_word(value)}" for name, value in options.items()
    )


def load_variant(name: str) -> Variant:
    """A variant of the package by its name, or one of the user's own by `module:NAME`."""
    if not is_users_own(name):
        return find_variant(name)
    _look_here()
    with own_output():
        found = users_own("variant", name)
    if not isinstance(found, Variant):
        raise ValueError(
            f"variant {name!r} names {with_article(type(found).__name__)}: it must name a"
            " sdesam.Variant"
        )
    return found


def load_direction(name: str) -> Callable[..., Any]:
    """A direction `(x, samples, rho)` of the user's own by `module:function`."""
    if not is_users_own(name):
        raise ValueError(f"--step {name}: write module:function or path/to/file.py:function")
    _look_here()
    with own_output():
        found = users_own("direction", name)
    if not callable(found):
        raise ValueError(
            f"direction {name!r} names {with_article(type(found).__name__)}: it must name a"
            " function (x, samples, rho)"
        )
    return found  # type: ignore[no-any-return]


def load_problem(name: str, arguments: tuple[tuple[str, Any], ...]) -> FiniteSum:
    """A ready-made problem by its name, or one of the user's own by `module:function`."""
    from sdesam.problems.loading import load

    if is_users_own(name):
        _look_here()
    with own_output():
        return load(name, **dict(arguments))


def _look_here() -> None:
    """Find modules in the folder that one works in; they hide no installed one."""
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)


def with_suffixes(folder: str, stem: str, *suffixes: str) -> list[Path]:
    """The files of one name in a folder."""
    return [Path(folder, f"{stem}{suffix}") for suffix in suffixes]


def check_outputs(
    json_file: str | None, *, output: Sequence[Path] = (), **files: str | None
) -> None:
    """See before any work that everything can be written; `files` are named as their options
    are.
    """
    for name, file in files.items():
        if file == "-":
            raise ValueError(f"--{name} -: only --json goes to the standard output; name a file")
    check_files(
        [
            *files.items(),
            ("json", None if json_file == "-" else json_file),
            *(("output", file) for file in output),
        ]
    )


def report_result(
    out: Result, json_file: str | None, save: str | None, asked: dict[str, Any]
) -> None:
    """Write and print a result; `asked` goes into its configuration.

    Raises:
        CouldNotFinish: every path diverged, or a mean is no number.
    """
    results = {
        "time": out.time,
        "mean": out.mean,
        "stderr": out.stderr,
        "diverged": {
            "paths": out.diverged.paths,
            "time": out.diverged.time,
            "total": out.diverged.total,
        },
        "nonfinite": out.nonfinite,
    }
    deliver(
        None
        if json_file == "-"
        else "\n".join([series_table(out), str(out.diverged), *out.warnings()]),
        partial(write_result, out, save),
        partial(
            write_or_print, json_file, described("sdesam.run/1", {**out.config, **asked}, results)
        ),
    )
    # after the files are written: what diverged is there to be looked at
    if out.diverged.count == out.diverged.total:
        raise CouldNotFinish("every path diverged; a smaller lr, dt or rho would help")
    check_finite(out)


def check_finite(out: Result, of: str = "") -> None:
    """No status of success with means that are no numbers."""
    for name, mean in out.mean.items():
        bad = ~np.isfinite(mean)
        if bad.any():
            times = np.flatnonzero(bad.any(axis=tuple(range(1, bad.ndim))))
            raise CouldNotFinish(
                f"{of}the mean of {name!r} is not finite at {len(times)} of {len(out.time)} times,"
                f" first at {out.time[times[0]]:g}"
            )


def series_table(out: Result) -> str:
    """The means at each time with their standard errors; only of observables that are numbers."""
    from sdesam.verify.comparison import with_error

    names = [name for name, mean in out.mean.items() if mean.ndim == 1]
    lines = [f"{'time':>8} " + " ".join(f"{name:>16}" for name in names)]
    for k, time in enumerate(out.time):
        lines.append(
            f"{time:>8.4g} "
            + " ".join(f"{with_error(out.mean[n][k], out.stderr[n][k]):>16}" for n in names)
        )
    lines += [
        f"not shown: {name}, of shape {mean.shape[1:]}; --json and --save hold it"
        for name, mean in out.mean.items()
        if mean.ndim > 1
    ]
    return "\n".join(lines)


def described(schema: str, config: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    """Results with what they are and where they came from."""
    from sdesam._util import store

    return {
        "schema": schema,
        "config": config,
        "provenance": store.provenance(),
        "results": results,
    }


def write_result(out: Result, file: str | None) -> list[Path]:
    """Write a result, final states included; its file, if one is named."""
    if file is None:
        return []
    out.save(file)
    return [Path(file)]


def write_text(file: Path, text: str) -> list[Path]:
    from sdesam._util import store

    store.write_atomically(file, lambda stream: stream.write(text.encode()))
    return [file]


def write_or_print(file: str | None, data: dict[str, Any]) -> list[Path]:
    """Data as JSON to a file or, for `-`, to the standard output; the files that were written."""
    from sdesam._util import store

    if file is None:
        return []
    if file == "-":
        say(json.dumps(store.plain(data), indent=1, allow_nan=False))
        return []
    store.write_json(file, data)
    return [Path(file)]
