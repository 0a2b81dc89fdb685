"""Wrong optimizers: step kernels with one thing wrong, to be caught against the right theory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import jax
import jax.numpy as jnp

from sdesam.optim.kernel import StepKernel, StepNumbers

PyTree = Any


# A kernel is handed the indices of a mini-batch, shape (b/m, m), a row a micro-batch, and gives the
# direction of the step. The right one is the mean over rows of grad f_row(x + rho grad f_row(x)).
# "Perturbation from the mini-batch" is the same with the gradient inside taken over all indices:
# one line, as an optimizer gets it wrong in practice.
class _WrongKernel(StepKernel):
    """A step kernel with its perturbation, its radius or its scale wrong; subclasses say which."""

    def _grad(self, params: StepNumbers, x: PyTree, indices: jax.Array) -> PyTree:
        samples = jax.tree.map(lambda leaf: leaf[indices], params.data)
        return jax.grad(lambda y: jnp.mean(jax.vmap(self.sample_loss, (None, 0))(y, samples)))(x)

    def _all(self, params: StepNumbers) -> jax.Array:
        return jnp.arange(self.n)

    def _mean(
        self,
        params: StepNumbers,
        x: PyTree,
        indices: jax.Array,
        perturbation: Callable[[jax.Array], PyTree],
    ) -> PyTree:
        steps = [
            self._grad(params, x + params.rho * perturbation(group), group) for group in indices
        ]
        return sum(steps) / len(steps)


def _kernel(
    name: str, direction: Callable[[Any, StepNumbers, PyTree, jax.Array], PyTree]
) -> type[StepKernel]:
    def wrong(self: Any, x: PyTree, indices: jax.Array, key: jax.Array | None = None) -> PyTree:
        return direction(self, self.numbers, x, indices)

    # jax knows classes one by one: a subclass of a pytree is none yet
    return jax.tree_util.register_dataclass(
        type(name, (_WrongKernel,), {"direction": wrong}),
        data_fields=["numbers"],
        meta_fields=[part.name for part in fields(StepKernel) if part.name != "numbers"],
    )


def _renumbered(change: Callable[[StepNumbers], StepNumbers]) -> type[StepKernel]:
    return _kernel(
        "_Renumbered",
        lambda self, p, x, i: StepKernel.direction(replace(self, numbers=change(p)), x, i),
    )


def _rescaled(factor: float) -> type[StepKernel]:
    return _kernel("_Rescaled", lambda self, p, x, i: factor * StepKernel.direction(self, x, i))


KERNELS: dict[str, type[StepKernel]] = {
    "time scale off by 2 in the chain": _rescaled(2.0),
    "gradient summed over micro-batches": _kernel(
        "_Summed", lambda self, p, x, i: len(i) * StepKernel.direction(self, x, i)
    ),
    "step 10 % too long": _rescaled(1.1),
    "step uphill": _rescaled(-1.0),
    "radius 10 % too large": _renumbered(lambda p: p._replace(rho=1.1 * p.rho)),
    "radius 10 % too small": _renumbered(lambda p: p._replace(rho=0.9 * p.rho)),
    "radius doubled": _renumbered(lambda p: p._replace(rho=2 * p.rho)),
    "radius squared": _renumbered(lambda p: p._replace(rho=p.rho**2)),
    "perturbation downhill": _renumbered(lambda p: p._replace(rho=-p.rho)),
    "no perturbation": _renumbered(lambda p: p._replace(rho=0 * p.rho)),
    "perturbation from the mini-batch": _kernel(
        "_FromBatch",
        lambda self, p, x, i: self._mean(p, x, i, lambda group: self._grad(p, x, i.reshape(-1))),
    ),
    "perturbation from the whole set": _kernel(
        "_FromAll",
        lambda self, p, x, i: self._mean(p, x, i, lambda group: self._grad(p, x, self._all(p))),
    ),
    "perturbation from the other micro-batch": _kernel(
        "_Swapped",
        lambda self, p, x, i: (
            sum(self._grad(p, x + p.rho * self._grad(p, x, i[k - 1]), i[k]) for k in range(len(i)))
            / len(i)
        ),
    ),
    "perturbation from the first sample only": _kernel(
        "_First",
        lambda self, p, x, i: self._mean(p, x, i, lambda group: self._grad(p, x, group[:1])),
    ),
    "two ascent steps": _kernel(
        "_Two",
        lambda self, p, x, i: self._mean(
            p,
            x,
            i,
            lambda group: (
                self._grad(p, x, group) + self._grad(p, x + p.rho * self._grad(p, x, group), group)
            ),
        ),
    ),
    "normalised perturbation": _kernel(
        "_Normalised",
        lambda self, p, x, i: self._mean(
            p,
            x,
            i,
            lambda g: self._grad(p, x, g) / jnp.sqrt(0.01 + jnp.sum(self._grad(p, x, g) ** 2)),
        ),
    ),
    "micro-batches of one": _kernel(
        "_Ones",
        lambda self, p, x, i: self._mean(
            p, x, i.reshape(-1, 1), lambda group: self._grad(p, x, group)
        ),
    ),
    "second micro-batch not used": _kernel(
        "_Half", lambda self, p, x, i: StepKernel.direction(self, x, i[:1])
    ),
    "weight decay that nobody asked for": _kernel(
        "_Decay", lambda self, p, x, i: StepKernel.direction(self, x, i) + 0.05 * x
    ),
}


ALWAYS_PERTURBED = _kernel(
    "_Always",
    lambda self, p, x, i: self._mean(
        p._replace(rho=0.1), x, i, lambda group: self._grad(p, x, group)
    ),
)


def _along(
    perturbation: Callable[[Any, StepNumbers, PyTree, jax.Array, jax.Array], PyTree],
) -> type[StepKernel]:
    """A kernel whose perturbation is a function of
    `(kernel, numbers, x, mini-batch, micro-batch)`.
    """
    return _kernel(
        "_Along",
        lambda self, p, x, i: self._mean(
            p, x, i, lambda group: perturbation(self, p, x, i.reshape(-1), group)
        ),
    )


def _norm(v: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(v**2))


def _unit(v: jax.Array, w: jax.Array, eps: Any) -> jax.Array:
    return v / jnp.sqrt(jnp.sum(w**2) + eps**2)


def _weighted_step(
    weights: Callable[[jax.Array, StepNumbers], jax.Array], descent: bool = False
) -> type[StepKernel]:
    """RW-SAM with other weights of the per-sample gradients, or with weights in the descent
    gradient too.
    """

    def direction(self: Any, p: StepNumbers, x: PyTree, i: jax.Array) -> PyTree:
        batch = i.reshape(-1)
        each = jnp.stack([self._grad(p, x, batch[k : k + 1]) for k in range(len(batch))])
        w = weights(each, p)
        y = x + p.rho * _unit(w @ each, w @ each, p.eps)
        if not descent:
            return self._grad(p, y, batch)
        return w @ jnp.stack([self._grad(p, y, batch[k : k + 1]) for k in range(len(batch))])

    return _kernel("_Weighted", direction)


def _softmax(scale: float) -> Callable[[jax.Array, StepNumbers], jax.Array]:
    return lambda g, p: jax.nn.softmax(scale * p.lam * jnp.sqrt(jnp.sum(g**2, axis=1)))


NORMALISED_KERNELS: dict[str, dict[str, type[StepKernel]]] = {
    "m-sam": {
        "no normaliser": _along(lambda k, p, x, batch, part: k._grad(p, x, part)),
        "eps dropped": _renumbered(lambda p: p._replace(eps=0 * p.eps)),
        "eps doubled": _renumbered(lambda p: p._replace(eps=2 * p.eps)),
        "|v| + eps for sqrt(|v|^2 + eps^2)": _along(
            lambda k, p, x, batch, part: k._grad(p, x, part) / (_norm(k._grad(p, x, part)) + p.eps)
        ),
        "normaliser squared": _along(
            lambda k, p, x, batch, part: (
                k._grad(p, x, part) / (jnp.sum(k._grad(p, x, part) ** 2) + p.eps**2)
            )
        ),
        "normaliser 10 % too small": _along(
            lambda k, p, x, batch, part: (
                1.1 * _unit(k._grad(p, x, part), k._grad(p, x, part), p.eps)
            )
        ),
        "l1 norm": _along(
            lambda k, p, x, batch, part: _unit(
                k._grad(p, x, part), jnp.sum(abs(k._grad(p, x, part))), p.eps
            )
        ),
        "each coordinate normalised": _along(
            lambda k, p, x, batch, part: (
                k._grad(p, x, part) / jnp.sqrt(k._grad(p, x, part) ** 2 + p.eps**2)
            )
        ),
        "norm of the mini-batch's gradient": _along(
            lambda k, p, x, batch, part: _unit(k._grad(p, x, part), k._grad(p, x, batch), p.eps)
        ),
        "norm of the whole set's gradient: DNSAM's": _along(
            lambda k, p, x, batch, part: _unit(k._grad(p, x, part), k._grad(p, x, k._all(p)), p.eps)
        ),
        "mean norm of the samples": _along(
            lambda k, p, x, batch, part: _unit(
                k._grad(p, x, part),
                jnp.mean(
                    jnp.stack([_norm(k._grad(p, x, part[j : j + 1])) for j in range(len(part))])
                ),
                p.eps,
            )
        ),
        "norm at the perturbed point": _along(
            lambda k, p, x, batch, part: _unit(
                k._grad(p, x, part), k._grad(p, x + 0.3 * k._grad(p, x, part), part), p.eps
            )
        ),
        "SAM for m-SAM": _along(
            lambda k, p, x, batch, part: _unit(k._grad(p, x, batch), k._grad(p, x, batch), p.eps)
        ),
        "n-SAM for m-SAM": _along(
            lambda k, p, x, batch, part: _unit(
                k._grad(p, x, k._all(p)), k._grad(p, x, k._all(p)), p.eps
            )
        ),
        "radius 10 % too large": _renumbered(lambda p: p._replace(rho=1.1 * p.rho)),
        "perturbation downhill": _renumbered(lambda p: p._replace(rho=-p.rho)),
    },
    "sam": {
        "m-SAM for SAM": _kernel(
            "_Ones",
            lambda self, p, x, i: self._mean(
                p,
                x,
                i.reshape(-1, 1),
                lambda one: _unit(self._grad(p, x, one), self._grad(p, x, one), p.eps),
            ),
        ),
        "norm of the first sample": _along(
            lambda k, p, x, batch, part: _unit(k._grad(p, x, part), k._grad(p, x, part[:1]), p.eps)
        ),
    },
    "n-sam": {
        "norm of the mini-batch's gradient": _along(
            lambda k, p, x, batch, part: _unit(
                k._grad(p, x, k._all(p)), k._grad(p, x, batch), p.eps
            )
        ),
        "SAM for n-SAM": _along(
            lambda k, p, x, batch, part: _unit(k._grad(p, x, batch), k._grad(p, x, batch), p.eps)
        ),
    },
    "dnsam": {
        "SAM for DNSAM": _along(
            lambda k, p, x, batch, part: _unit(k._grad(p, x, batch), k._grad(p, x, batch), p.eps)
        ),
        "eps dropped": _renumbered(lambda p: p._replace(eps=0 * p.eps)),
        "gradient of the whole set: n-SAM's": _along(
            lambda k, p, x, batch, part: _unit(
                k._grad(p, x, k._all(p)), k._grad(p, x, k._all(p)), p.eps
            )
        ),
    },
    "rw-sam": {
        "no weights: SAM": _renumbered(lambda p: p._replace(lam=0 * p.lam)),
        "lam doubled": _renumbered(lambda p: p._replace(lam=2 * p.lam)),
        "smallest gradients first": _weighted_step(_softmax(-1.0)),
        "weights proportional to |g_i|": _weighted_step(
            lambda g, p: jnp.sqrt(jnp.sum(g**2, axis=1)) / jnp.sum(jnp.sqrt(jnp.sum(g**2, axis=1)))
        ),
        "weights do not sum to 1": _weighted_step(lambda g, p: 1.5 * _softmax(1.0)(g, p)),
        "descent gradient weighted too": _weighted_step(_softmax(1.0), descent=True),
    },
}
