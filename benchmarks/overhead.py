"""What RW-SAM and m-SAM cost beside SAM, per step, on two small networks; where RW-SAM's cost comes
from.

Run with `python -m benchmarks.overhead` from a checkout; about a minute on two cores. RW-SAM adds
ONE forward pass to SAM's two forward and two backward passes. With a backward pass that costs two
forward passes that is one sixth more; the table sets beside it the sixth that follows from the
costs of forward and backward pass as they are measured here, and the time of the random direction.

All contenders of a network take turns in every round; a ratio is the median over rounds of the
ratio within a round, with its quartiles.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import jax
import jax.numpy as jnp
import numpy as np
import optax

from sdesam import NormEstimate, optim
from sdesam._util import store
from sdesam.optim import kernel

BATCH = 64
RHO, LR, LAM = 0.05, 0.1, 1.0
HERE = Path(__file__).resolve().parent

Network = tuple[dict[str, jax.Array], Callable[[Any, Any], jax.Array]]


def mlp(rng: np.random.Generator) -> Network:
    """64-64-10 with tanh, on the 8x8 images as vectors: 4,810 parameters."""
    params = {
        "W1": rng.normal(size=(64, 64)) / 8,
        "b1": np.zeros(64),
        "W2": rng.normal(size=(64, 10)) / 8,
        "b2": np.zeros(10),
    }

    def scores(params: Any, images: jax.Array) -> jax.Array:
        return jnp.tanh(images @ params["W1"] + params["b1"]) @ params["W2"] + params["b2"]

    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params), scores


def cnn(rng: np.random.Generator) -> Network:
    """Two 3x3 convolutions (1-8-16 channels, the second with stride 2), tanh, one dense layer, on
    the 8x8 images: 3,818 parameters.
    """
    params = {
        "K1": rng.normal(size=(3, 3, 1, 8)) / 3,
        "b1": np.zeros(8),
        "K2": rng.normal(size=(3, 3, 8, 16)) / np.sqrt(72),
        "b2": np.zeros(16),
        "W": rng.normal(size=(256, 10)) / 16,
        "b": np.zeros(10),
    }
    layout = ("NHWC", "HWIO", "NHWC")

    def scores(params: Any, images: jax.Array) -> jax.Array:
        h = images.reshape(-1, 8, 8, 1)
        h = jnp.tanh(
            jax.lax.conv_general_dilated(h, params["K1"], (1, 1), "SAME", dimension_numbers=layout)
            + params["b1"]
        )
        h = jnp.tanh(
            jax.lax.conv_general_dilated(h, params["K2"], (2, 2), "SAME", dimension_numbers=layout)
            + params["b2"]
        )
        return h.reshape(h.shape[0], -1) @ params["W"] + params["b"]

    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params), scores


NETWORKS: dict[str, Callable[[np.random.Generator], Network]] = {
    "MLP 64-64-10": mlp,
    "CNN 8-16-10": cnn,
}


def contenders(
    params: Any, scores: Callable[[Any, Any], jax.Array], batches: Any
) -> dict[str, Callable[[], Any]]:
    """Compiled runs over `batches`, a scan of one step each, by name."""

    def losses(p: Any, batch: Any) -> jax.Array:
        out = scores(p, batch["image"])
        return (
            jax.nn.logsumexp(out, axis=-1)
            - jnp.take_along_axis(out, batch["label"][:, None], axis=-1)[:, 0]
        )

    def mean(p: Any, batch: Any) -> jax.Array:
        return jnp.mean(losses(p, batch))

    sgd = optax.sgd(LR)
    keys = jax.random.split(jax.random.key(0), jax.tree.leaves(batches)[0].shape[0])

    def ours(opt: optim.Optimizer) -> Callable[[Any, Any], Any]:
        def body(carry: Any, drawn: Any) -> Any:
            batch, key = drawn
            params, state, _ = opt.step(
                *carry, batch, key=key if opt.norms is not None and opt.norms.random else None
            )
            return (params, state), None

        return lambda start, drawn: jax.lax.scan(body, (start, opt.init(start)), drawn)[0][0]

    def by_optax(transformation: Any, twice: bool) -> Callable[[Any, Any], Any]:
        def body(carry: Any, drawn: Any) -> Any:
            (params, state), (batch, _) = carry, drawn
            more = {"grad_fn": lambda p, i: jax.grad(mean)(p, batch)} if twice else {}
            updates, state = transformation.update(
                jax.grad(mean)(params, batch), state, params, **more
            )
            return (optax.apply_updates(params, updates), state), None

        return lambda start, drawn: jax.lax.scan(body, (start, transformation.init(start)), drawn)[
            0
        ][0]

    def part(work: Callable[[Any, Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """A part of a step alone; it moves the parameters by nothing that matters, so that no pass
        can be left out or taken out of the loop.
        """

        def body(params: Any, drawn: Any) -> Any:
            batch, key = drawn
            return (
                jax.tree.map(
                    lambda leaf, change: leaf + 1e-30 * change, params, work(params, batch, key)
                ),
                None,
            )

        return lambda start, drawn: jax.lax.scan(body, start, drawn)[0]

    def forward(params: Any, batch: Any, key: Any) -> Any:
        value = mean(params, batch)
        return jax.tree.map(lambda leaf: value, params)

    ascent = optax.chain(optax.contrib.normalize(), optax.sgd(RHO))
    runs = {
        "SGD": by_optax(sgd, twice=False),
        "SAM": ours(optim.sam(losses, sgd, RHO)),
        "SAM (optax.contrib)": by_optax(
            optax.contrib.sam(sgd, ascent, opaque_mode=True), twice=True
        ),
        "RW-SAM": ours(optim.rw_sam(losses, sgd, RHO, LAM)),
        "RW-SAM, Gaussian": ours(
            optim.rw_sam(losses, sgd, RHO, LAM, norms=NormEstimate("gaussian"))
        ),
        "RW-SAM, 4 directions": ours(
            optim.rw_sam(losses, sgd, RHO, LAM, norms=NormEstimate(directions=4))
        ),
        **{f"m-SAM, m = {m}": ours(optim.m_sam(losses, sgd, RHO, m)) for m in (64, 16, 4, 1)},
        **{
            f"m-SAM, m = {m}, accumulated": ours(
                optim.m_sam(losses, sgd, RHO, m, groups="accumulate")
            )
            for m in (16, 4, 1)
        },
        "empty loop": part(
            lambda p, batch, key: jax.tree.map(lambda leaf: batch["image"][0, 0], p)
        ),
        "forward": part(forward),
        "forward + backward": part(lambda p, batch, key: jax.grad(mean)(p, batch)),
        "direction": part(lambda p, batch, key: kernel.direction(NormEstimate(), p, key)),
    }
    compiled = {name: jax.jit(run) for name, run in runs.items()}
    return {
        name: lambda run=run: jax.block_until_ready(run(params, (batches, keys)))
        for name, run in compiled.items()
    }  # type: ignore[misc]


def measure(runs: dict[str, Callable[[], Any]], steps: int, rounds: int) -> dict[str, np.ndarray]:
    """Microseconds per step of every contender in every round, after one call that compiles."""
    for run in runs.values():
        run()
    taken: dict[str, list[float]] = {name: [] for name in runs}
    with click.progressbar(range(rounds), label="rounds") as bar:
        for _ in bar:
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                taken[name].append(1e6 * (time.perf_counter() - start) / steps)
    return {name: np.array(values) for name, values in taken.items()}


def summary(taken: dict[str, np.ndarray]) -> dict[str, Any]:
    """Medians and quartiles, ratios to SAM within a round, and what the parts predict for
    RW-SAM.
    """

    def quartiles(values: np.ndarray) -> dict[str, float]:
        low, middle, high = np.percentile(values, [25, 50, 75])
        return {"median": middle, "low": low, "high": high}

    forward, both, direction = (
        taken[name] - taken["empty loop"] for name in ("forward", "forward + backward", "direction")
    )
    return {
        "contenders": {
            name: {"us_per_step": quartiles(values), "over_sam": quartiles(values / taken["SAM"])}
            for name, values in taken.items()
        },
        "theory": {
            "rw_sam_over_sam": 1 + 1 / 6,
            "forward_share": quartiles(forward / both),
            "with_measured_forward": quartiles(1 + forward / (2 * both)),
            "with_measured_forward_and_direction": quartiles(
                1 + (forward + direction) / (2 * both)
            ),
        },
    }


def table(network: str, found: dict[str, Any]) -> str:
    """The summary of a network as Markdown."""
    lines = [
        f"| {network}, b = {BATCH} | us per step | over SAM (quartiles) |",
        "| --- | --- | --- |",
    ]
    for name, values in found["contenders"].items():
        ratio = values["over_sam"]
        lines.append(
            f"| {name} | {values['us_per_step']['median']:.1f} | {ratio['median']:.3f}"
            f" ({ratio['low']:.3f} to {ratio['high']:.3f}) |"
        )
    theory = found["theory"]
    predicted = (
        theory["with_measured_forward"]["median"],
        theory["with_measured_forward_and_direction"]["median"],
    )
    lines += [
        "",
        (
            f"RW-SAM over SAM: theory 1 + 1/6 = {theory['rw_sam_over_sam']:.3f}, if a forward pass"
            f" is 1/3 of forward and backward. It is {theory['forward_share']['median']:.2f} here,"
            f" which predicts {predicted[0]:.3f}, and {predicted[1]:.3f} with the random direction."
            f" Measured: {found['contenders']['RW-SAM']['over_sam']['median']:.3f}."
        ),
    ]
    return "\n".join(lines)


@click.command()
@click.option("--rounds", default=15, show_default=True, help="Turns of every contender.")
@click.option("--steps", default=40, show_default=True, help="Steps in one turn.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=HERE / "overhead.json",
    show_default="overhead.json beside this file",
    help="JSON; the tables go beside it.",
)
def main(rounds: int, steps: int, output: Path) -> None:
    """Measure both networks, print the tables, write them and the JSON."""
    from sklearn.datasets import load_digits

    store.check_folder(output.parent)
    source = load_digits()
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(source.data), size=(steps, BATCH))
    batches = {
        "image": jnp.asarray((source.data / 16 - 0.3)[drawn], jnp.float32),
        "label": jnp.asarray(source.target[drawn], jnp.int32),
    }
    results = {}
    for network, make in NETWORKS.items():
        results[network] = summary(measure(contenders(*make(rng), batches), steps, rounds))
        print(f"\n{table(network, results[network])}\n", flush=True)
    provenance = store.provenance()
    provenance["versions"]["optax"] = optax.__version__
    config = {
        "batch": BATCH,
        "rho": RHO,
        "lr": LR,
        "lam": LAM,
        "rounds": rounds,
        "steps": steps,
        "command": "python -m benchmarks.overhead",
    }
    store.write_json(
        output,
        {
            "schema": "sdesam.overhead/1",
            "config": config,
            "provenance": provenance,
            "results": results,
        },
    )
    output.with_suffix(".md").write_text(
        "\n\n".join(table(network, found) for network, found in results.items()) + "\n"
    )
    print("wrote", output, output.with_suffix(".md"))


if __name__ == "__main__":
    main()
