"""Random calls of the API: odd pytrees, dtypes, sizes, times, observables, keys and functions; half
of them have one wrong argument.

A violation is: an error that is no clear sentence naming something of the call; a right call that
is refused; a hang of 60 s or a crash; a NaN in a mean or standard error of two paths or more that
neither `diverged` nor `nonfinite` explains; a result that differs between two identical calls, or
from the known value.

    python -m tests.campaigns.api --count 200 --seed 0
"""

from __future__ import annotations

import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sdesam
from sdesam import optim
from tests.campaigns._odd import Draw, Pair, first, number, squares
from tests.campaigns._tries import Outcome, arguments, fault_of, report, seeds, tell, tries, wrong

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0",
}


def a_problem(draw: Draw, **more: Any) -> tuple[dict[str, Any], np.ndarray]:
    n = draw.pick([1, 2, 3, 8, 8, 8])
    a = np.asarray(jnp.asarray(draw.rng.normal(size=n), draw.dtype))
    data = draw.pick([a, jnp.asarray(a), {"a": a}, Pair(a, None), Pair(a, np.arange(n))])
    loss = draw.pick(
        [squares, partial(squares), jax.jit(squares), lambda x, sample: squares(x, sample)]
    )
    return draw.args(
        sample_loss=loss, data=data, x0=draw.tree(), observables={"first": first}, **more
    ), np.asarray(a, float)


def finite_sum(draw: Draw) -> tuple[Callable[[], Any], Callable[[Any], bool]]:
    given, a = a_problem(draw, chunk=draw.pick([None, 1, 3]))

    def call() -> Any:
        problem = sdesam.FiniteSum(**given)
        return (
            problem.loss(problem.x0),
            problem.trace_cov(problem.x0),
            problem.grad_norm2(problem.x0),
            problem.grad(problem.x0),
        )

    def right(found: Any) -> bool:
        x = np.concatenate(
            [np.ravel(np.asarray(leaf, float)) for leaf in jax.tree.leaves(given["x0"])]
        )
        return draw.close(found[0], ((x[:, None] - a) ** 2).sum(0).mean() / 2) and draw.close(
            found[1], len(x) * a.var()
        )

    return call, right


def sizes(draw: Draw, n: int, rule: str, **more: Any) -> dict[str, Any]:
    batch = draw.pick([k for k in (1, 2, 4, 8, n) if k <= n])
    micro = (
        {"micro": draw.pick([m for m in (1, 2, batch) if batch % m == 0])}
        if rule.startswith("m-")
        else {}
    )
    rho = {} if rule == "sgd" else {"rho": draw.pick([0.0, 0.1])}
    return draw.args(
        lr=draw.pick([0.1, 0.25, np.float32(0.1)]),
        **rho,
        batch=draw.pick([batch, np.int64(batch)]),
        **micro,
        **more,
    )


def hand_written(draw: Draw) -> tuple[Callable[[], Any], Callable[[Any], bool]]:
    shape = draw.pick([(), (1,), (3,)])
    made = draw.args(
        drift=draw.pick(
            [
                lambda x: jax.tree.map(lambda leaf: -leaf, x),
                jax.jit(lambda x: jax.tree.map(jnp.negative, x)),
            ]
        ),
        apply_noise=lambda x, xi: jax.tree.map(
            lambda leaf: (0.2 * xi.sum() * jnp.ones_like(leaf)).astype(leaf.dtype), x
        ),
        noise_shape=shape,
        x0=draw.tree(),
    )
    low = number(made["x0"]) - 0.1 if draw.spoiled is None else 0.0
    steps, dt, method = (
        draw.pick([1, 2, 8]),
        draw.pick([0.25, 0.125]),
        draw.pick(["euler", "heun", "richardson"]),
    )
    run = draw.args(
        **{
            "key": draw.key(),
            "paths": draw.pick([1, 2, 16]),
            "horizon": steps * dt,
            "dt": dt,
            "method": method,
        },
        times=draw.pick([None, [steps * dt], [0.0, steps * dt], np.array([0, dt])]),
        observe=draw.pick(
            [
                {"first": first},
                {"first": first, "all": lambda x: jax.tree.leaves(x)[0]},
                {"first": first, "log": lambda x: jnp.log(first(x) - low)},
            ]
        ),
        keep=draw.pick(["statistics", "means", "values", "trajectories"]),
        chunk=draw.pick([None, 1, 3]),
        normals=draw.pick(["counter", "jax"]),
        devices=draw.pick([None, jax.devices()[:1]]),
    )
    factor = {"euler": 1 - dt, "heun": 1 - dt + dt**2 / 2, "richardson": 0}[method]

    def right(out: Any) -> bool:
        ks = out.time / dt
        mean = (
            2 * (1 - dt / 2) ** (2 * ks) - (1 - dt) ** ks if method == "richardson" else factor**ks
        )
        return len(ks) > 0 and (
            run["paths"] == 1
            or draw.close(
                out.mean["first"], number(made["x0"]) * mean, out.stderr["first"], run["paths"]
            )
        )

    return (lambda: saved(draw, sdesam.simulate(sdesam.SDE(**made), **run))), right


def saved(draw: Draw, out: Any) -> Any:
    """The result, written and read back where the dice say so."""
    if draw.arguments.setdefault("saved", bool(draw.rng.random() < 0.5)):
        with tempfile.TemporaryDirectory() as folder:
            out.save(Path(folder) / "out.npz")
            back = sdesam.Result.load(Path(folder) / "out.npz")
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(out.final)]
        again = [np.asarray(leaf) for leaf in jax.tree.leaves(back.final)]
        assert [(leaf.dtype, leaf.tobytes()) for leaf in leaves] == [
            (leaf.dtype, leaf.tobytes()) for leaf in again
        ], "states change in a file"
        assert out.mean.keys() == back.mean.keys(), "names change in a file"
        assert all(
            np.array_equal(out.mean[name], back.mean[name], equal_nan=True) for name in out.mean
        ), "means change in a file"
    return out


def derived(draw: Draw) -> tuple[Callable[[], Any], Callable[[Any], bool]]:
    given, a = a_problem(draw)
    variant = draw.pick(
        ["sgd", "usam", "m-usam", "n-usam", "sam", "m-sam", "dnsam", "n-sam", "rw-sam"]
    )
    law = draw.args(
        variant=variant, order=draw.pick([(1, 2), (2, 3)]), replace=draw.pick([True, False])
    )
    more = {"eps": 0.1} if "sam" in variant and "usam" not in variant else {}
    numbers = sizes(draw, len(a), variant, **more, **({"lam": 1.0} if variant == "rw-sam" else {}))
    steps = draw.pick([1, 4])
    run = draw.args(
        key=draw.key(),
        paths=draw.pick([2, 16]),
        horizon=steps * 0.125,
        dt=0.125,
        observe=draw.pick([["first"], ["loss", "first"], "first"]),
    )

    def right(out: Any) -> bool:
        if variant not in ("sgd", "usam"):
            return True
        # rho^2 is nothing where third derivatives are
        lr, slope = (
            float(numbers["lr"]),
            1 + float(numbers.get("rho", 0)),
        )
        eta = lr / 2 * (slope**2 if law["order"] == (2, 3) else 0)
        # eta rho^2 is below the order
        eta -= lr / 2 * float(numbers.get("rho", 0)) ** 2 if eta else 0
        mean = a.mean() + (number(given["x0"]) - a.mean()) * (1 - 0.125 * (slope + eta)) ** (
            out.time / 0.125
        )
        return draw.close(out.mean["first"], mean, out.stderr["first"], run["paths"])

    def call() -> Any:
        return sdesam.simulate(
            sdesam.derive(**law).bind(sdesam.FiniteSum(**given), **numbers), **run
        )

    return call, right


def trained(draw: Draw) -> tuple[Callable[[], Any], Callable[[Any], bool]]:
    given, a = a_problem(draw)
    variant = draw.pick(["sgd", "usam", "m-usam", "sam", "m-sam", "n-sam", "rw-sam"])
    numbers = sizes(
        draw,
        len(a),
        variant,
        **({"lam": 1.0} if variant == "rw-sam" else {}),
        variant=variant,
        replace=draw.pick([True, False]),
    )
    steps = draw.pick([1, 2, 7])
    lr = float(numbers["lr"]) if isinstance(numbers["lr"], (float, np.floating)) else 0.1
    run = draw.args(
        **{
            "key": draw.key(),
            "runs": draw.pick([1, 2, 16]),
            "steps": steps,
            "times": draw.pick([None, [0, steps * lr], [steps * lr]]),
        },
        observe=draw.pick([["first"], ["loss", "first", "trace_cov"], ("first",)]),
        keep=draw.pick(["statistics", "values"]),
        chunk=draw.pick([None, 1, 2]),
    )

    def right(out: Any) -> bool:
        if variant not in ("sgd", "usam", "m-usam") or run["runs"] == 1:
            return True
        factor = 1 - lr * (1 + float(numbers.get("rho", 0)))
        mean = a.mean() + (number(given["x0"]) - a.mean()) * factor ** (out.time / lr)
        return draw.close(out.mean["first"], mean, out.stderr["first"], run["runs"])

    return (
        lambda: saved(
            draw, sdesam.train(sdesam.Chain(problem=sdesam.FiniteSum(**given), **numbers), **run)
        )
    ), right


def planned(draw: Draw) -> tuple[Callable[[], Any], Callable[[Any], bool]]:
    given, a = a_problem(draw)
    numbers = sizes(draw, len(a), "usam")
    run = draw.args(
        paths=draw.pick([1, 4]),
        horizon=0.5,
        dt=0.125,
        observe=["loss"],
        keep=draw.pick(["statistics", "trajectories"]),
    )

    def call() -> Any:
        found = sdesam.estimate(
            sdesam.derive("usam").bind(sdesam.FiniteSum(**given), **numbers), **run
        )
        return found.paths, found.steps, found.chunks, found.host_bytes

    return call, lambda found: found[:2] == (run["paths"], 4)


def compared(draw: Draw) -> tuple[Callable[[], Any], Callable[[Any], bool]]:
    given, a = a_problem(draw)
    variant = draw.pick(["usam", "m-usam"])
    micro = {"micro": draw.pick([[1], [2, 1], (1,)])} if variant == "m-usam" and len(a) >= 2 else {}
    numbers = draw.args(
        variant=variant,
        lr=0.1,
        rho=0.1,
        batch=min(2, len(a)),
        **micro,
        steps=draw.pick([1, 4]),
        runs=8,
        seed=3,
    )
    run = draw.args(
        observe=draw.pick([["loss"], ["first"], ()]),
        judged=draw.pick(["loss", "trace_cov"]),
        method="heun",
    )

    def call() -> Any:
        found = sdesam.compare(problem=sdesam.FiniteSum(**given), **numbers, **run)
        return (
            found.status,
            found.table(),
            [row.chain for row in found.rows],
            [row.sde for row in found.rows],
        )

    return call, lambda found: found[0] in ("confirmed", "refuted", "inconclusive")


def exact(draw: Draw) -> tuple[Callable[[], Any], Callable[[Any], bool]]:
    variant = draw.pick(["sgd", "usam", "m-usam"])
    order = draw.pick([(1, 2), (2, 3)])
    made = draw.args(
        problem=draw.pick(
            [sdesam.problems.quadratic, partial(sdesam.problems.torus, dim=1, samples=3)]
        )
    )
    numbers = draw.args(
        batch=2, **({"micro": 1} if variant == "m-usam" else {}), horizon=1.0, c=0.5
    )

    def call() -> Any:
        problem = (
            made["problem"]()
            if callable(made["problem"]) and made["problem"] is not len
            else made["problem"]
        )
        return sdesam.weak_error(sdesam.derive(variant, order=order), problem, **numbers).slope

    return call, lambda slope: slope > order[0] - 0.2


def both(draw: Draw) -> tuple[Callable[[], Any], Callable[[Any], bool]]:
    given, a = a_problem(draw)
    numbers = sizes(draw, len(a), "sgd")
    steps = draw.pick([1, 6])
    run = draw.args(
        key=draw.key(),
        runs=draw.pick([2, 16]),
        steps=steps,
        observe=draw.pick([["first"], ["first", "loss"]]),
    )

    def call() -> Any:
        problem = sdesam.FiniteSum(**given)
        return sdesam.coupled(
            sdesam.derive("sgd").bind(problem, **numbers),
            sdesam.Chain("sgd", problem, **numbers),
            **run,
        )

    def right(out: Any) -> bool:
        lr = float(numbers["lr"])
        z, k = lr * (1 + lr / 2), out.time / lr
        gap = (number(given["x0"]) - a.mean()) * ((1 - z + z**2 / 2) ** k - (1 - lr) ** k)
        return draw.close(out.difference["first"], gap, out.stderr["first"], run["runs"])

    return call, right


def checked(draw: Draw) -> tuple[Callable[[], Any], Callable[[Any], bool]]:
    factor = draw.pick([1, 1, 2])
    stated = draw.args(
        potential=lambda p, x, lr, rho, batch, micro: (
            p.loss(x) + factor * rho / 2 * (p.grad_norm2(x) + p.trace_cov(x) / batch)
        )
    )
    asked = draw.args(variant="usam", order=(1, 2), replace=True)
    return (
        lambda: sdesam.check(sdesam.Hypothesis(**stated), **asked).status
    ), lambda found: found == ("confirmed" if factor == 1 else "refuted")


def optimized(draw: Draw) -> tuple[Callable[[], Any], Callable[[Any], bool]]:
    maker = draw.pick(["usam", "sam", "m_sam", "dnsam", "n_sam", "rw_sam"])
    x0 = jax.tree.map(jnp.asarray, draw.tree())
    batch = jnp.asarray(draw.rng.normal(size=4), draw.dtype)
    loss = draw.pick(
        [
            lambda x, batch: jax.vmap(squares, (None, 0))(x, batch),
            jax.jit(lambda x, batch: jax.vmap(squares, (None, 0))(x, batch)),
        ]
    )
    more = (
        {"micro": 2}
        if maker == "m_sam"
        else {"lam": 1.0, "norms": sdesam.NormEstimate(law="exact")}
        if maker == "rw_sam"
        else {}
    )
    given = draw.args(
        loss=loss, optimizer=optax.sgd(0.1), rho=draw.pick([0.1, 0, lambda count: 0.1]), **more
    )
    step = draw.args(params=x0)

    def call() -> Any:
        opt = getattr(optim, maker)(**given)
        params = step["params"]
        whole = {"whole": opt.whole_gradient(params, batch)} if maker in ("dnsam", "n_sam") else {}
        params, _, info = jax.jit(opt.step)(params, opt.init(params), batch, **whole)
        return params, info.loss

    def right(found: Any) -> bool:
        rho = given["rho"](0) if callable(given["rho"]) else given["rho"]
        start = number(x0)
        return maker != "usam" or draw.close(
            number(found[0]), start - 0.1 * (1 + rho) * (start - np.asarray(batch, float).mean())
        )

    return call, right


CALLS = [
    finite_sum,
    hand_written,
    hand_written,
    derived,
    derived,
    trained,
    trained,
    planned,
    compared,
    exact,
    both,
    checked,
    optimized,
    optimized,
]


def unexplained(found: Any) -> str | None:
    """The first NaN of a mean or a standard error that nothing explains."""
    if isinstance(found, (list, tuple)):
        return next((one for one in map(unexplained, found) if one), None)
    means = getattr(found, "difference", None) or getattr(found, "mean", None)
    if not isinstance(means, dict) or found.diverged.total < 2 or found.diverged:
        return None
    for name, mean in means.items():
        lost = getattr(found, "nonfinite", {}).get(name, 0)
        # all values but one are lost: no standard error
        for what, array in (("mean", mean), ("stderr", found.stderr[name])):
            if np.any(~np.isfinite(array) & (np.broadcast_to(lost, np.shape(array)) == 0)):
                return f"NaN in the {what} of {name!r}"
            if np.any(lost) and not any(name in sentence for sentence in found.warnings()):
                return f"no warning for {name!r}"
    return None


def numbers_of(found: Any) -> Any:
    """What must be the same a second time, as bytes."""
    kinds = ("time", "mean", "stderr", "difference", "final", "nonfinite", "values")
    if hasattr(found, "diverged"):
        found = {name: getattr(found, name, None) for name in kinds}
    elif isinstance(found, (list, tuple)) and any(
        hasattr(one, "diverged") or isinstance(one, list) for one in found
    ):
        found = [numbers_of(one) for one in found]
    return [
        leaf if isinstance(leaf, (str, bytes)) else np.asarray(leaf).tobytes()
        for leaf in jax.tree.leaves(found)
    ]


def raised_by_user(error: BaseException) -> bool:
    """Whether it comes from a function of `_odd.py`; a step is the user's own compiled code, in
    which errors pass as they are.
    """
    inside = any(
        frame.filename.endswith("_odd.py") for frame in traceback.extract_tb(error.__traceback__)
    )
    return inside or "positional arguments but" in str(error)  # not even called


def work(seed: int) -> Outcome:
    """One call, twice."""
    draw = Draw(seed)
    kind = draw.pick(CALLS)
    with (
        jax.enable_x64(True) if draw.dtype == "float64" else nullcontext(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", UserWarning)
        call, right = kind(draw)
        what = (
            f"{kind.__name__} of {draw.dtype}, odd: {draw.spoiled!r:.200},"
            f" {', '.join(f'{k}={v!r:.100}' for k, v in draw.arguments.items())}"
        )
        try:
            found = call()
            again = call()
        except Exception as error:
            if kind is optimized and raised_by_user(error):
                return Outcome(kind.__name__, "the user's own error")
            odd = [repr(draw.spoiled[1])[:20]] if draw.spoiled else []
            fault = fault_of(error, [*draw.arguments, "observable", *odd])
            if fault is None and draw.spoiled is None:
                fault = "a right call is refused"
            return (
                wrong(kind.__name__, fault, f"{what}\n  {tell(error)}")
                if fault
                else Outcome(kind.__name__, "refused")
            )
        fault = unexplained(found)
        if fault is None and numbers_of(found) != numbers_of(again):
            fault = "two identical calls differ"
        if fault is None and draw.spoiled is None and not right(found):
            fault = "another value than is known"
        return (
            wrong(kind.__name__, fault, f"{what}\n  {found!r:.1000}")
            if fault
            else Outcome(kind.__name__, "done")
        )


if __name__ == "__main__":
    given = arguments(__doc__, 200)
    sys.exit(report("api", tries(work, seeds(given), environment=ENVIRONMENT)))
