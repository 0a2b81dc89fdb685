"""Rules as optimizers: a maker for any rule, and one by name for each of Luo et al.'s. The
arguments that they share are described in :class:`sdesam.optim.Optimizer`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optax

from sdesam.optim.optimizer import Groups, Number, Optimizer, Together
from sdesam.variants import NormEstimate, Variant

__all__ = ["dnsam", "from_variant", "m_sam", "n_sam", "rw_sam", "sam", "usam"]

Loss = Callable[..., Any]


def from_variant(
    variant: str | Variant,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    rho: Number | None = None,
    *,
    micro: int | None = None,
    eps: Number = 0.0,
    lam: Number | None = None,
    norms: NormEstimate | None = None,
    groups: Groups = "vmap",
    has_aux: bool = False,
    has_key: bool = False,
    axis_name: str | None = None,
    perturbation: Together | None = None,
    **own: Number,
) -> Optimizer:
    """Any rule as an optimizer, `G = mean_I F_I(x)` with the rule's direction `F_I`, an expression
    of gradients `grad f_S(x + rho u)` of the samples `S`.

    What a rule needs besides the mini-batch is given to :meth:`Optimizer.step`:

    * `gradient("data")`: `whole=opt.whole_gradient(params, data)`, at the parameters. It may be an
      older one, or a moving average of gradients of mini-batches, as in the code of F-SAM;
    * `gradient(fresh)`: `fresh=`, another mini-batch, of as many samples where there are
      micro-batches; a tuple of two for `fresh(2)` beside it;
    * `random_direction()`: `key=`. Micro-batch `j`, counted over all devices, has the direction of
      `jax.random.fold_in(jax.random.fold_in(key, 1), j)`, with the second half of
      `jax.random.split(key)` for `key` where the loss has a key, too.

    In a rule that speaks of micro-batches `gradient("batch")` is that of all micro-batches of all
    devices, and the step on several devices is that of one.

    Args:
        variant: a name in :data:`sdesam.VARIANTS`, or a :class:`sdesam.Variant` of your own.
        loss: `loss(params, batch)`, a mean over samples; for a rule with Gibbs weights one value
            for each sample.
        optimizer: any optax optimizer.
        rho: perturbation radius, a number (which jax may trace) or an optax schedule; left out for
            a rule without a perturbation.
        micro: `m`, for a rule that speaks of micro-batches; left out, the batch (of a device).
        eps: of the normaliser; at 0 a vanishing vector has the unit vector 0.
        lam: inverse temperature of Gibbs weights.
        norms: how gradient norms are estimated for Gibbs weights.
        groups: `"vmap"` or `"accumulate"`.
        has_aux: the loss gives `(loss, aux)`.
        has_key: the loss takes a `key`.
        axis_name: of the devices that share a batch.
        perturbation: what they do, `"local"` or `"synchronised"`, where a rule without
            micro-batches leaves the choice.
        own: the rule's own numbers by name (`sigma=0.9` for `parameter("sigma")`), each a number
            (which jax may trace) or a schedule. They may be negative; where a traced or scheduled
            one is not finite the step is NaN.

    Raises:
        ValueError: as :class:`Optimizer`; a rule of `gradient("data", at=...)`; with `axis_name` a
            rule of `gradient("batch", at=u)` where `u` is a micro-batch's own.
        TypeError: as :class:`Optimizer`; a number of the rule's own that is missing, or that the
            rule does not have.

    Source: `variant.source`; the forms of rules are in `docs/theory.md`, section 1.

    >>> import jax, optax, jax.numpy as jnp
    >>> from sdesam.variants import Variant, gradient, parameter, unit
    >>> loss = lambda params, batch: jnp.mean((batch["input"] @ params - batch["target"]) ** 2) / 2
    >>> params, batch = jnp.array([1.0, -1.0]), {"input": jnp.eye(4, 2), "target": jnp.arange(4.0)}
    >>> noise = gradient("micro") - parameter("sigma") * gradient("data")
    >>> friendly = Variant("friendly", gradient("micro", at=unit(noise)))  # F-SAM
    >>> opt = from_variant(friendly, loss, optax.sgd(0.1), rho=0.05, micro=2, sigma=0.6)
    >>> average, state = jnp.zeros(2), opt.init(params)
    >>> for _ in range(3):
    ...     average = 0.9 * average + 0.1 * opt.whole_gradient(params, batch)
    ...     params, state, info = opt.step(params, state, batch, whole=average)
    >>> print(f"{info.loss:.3f}")
    2.188

    A rule with a batch of its own:

    >>> opt = from_variant("fresh-sam", loss, optax.sgd(0.1), rho=0.05, micro=2)
    >>> other = {"input": jnp.ones((4, 2)), "target": jnp.arange(4.0)}
    >>> params, state, info = opt.step(params, opt.init(params), batch, fresh=other)
    """
    return Optimizer(
        variant,
        loss,
        optimizer,
        rho,
        micro=micro,
        eps=eps,
        lam=lam,
        norms=norms,
        groups=groups,
        has_aux=has_aux,
        has_key=has_key,
        axis_name=axis_name,
        perturbation=perturbation,
        own=own,
    )


def usam(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    rho: Number,
    *,
    micro: int | None = None,
    groups: Groups = "vmap",
    has_aux: bool = False,
    has_key: bool = False,
    axis_name: str | None = None,
    perturbation: Together | None = None,
) -> Optimizer:
    """Unnormalised SAM, `G = grad f_gamma(x + rho grad f_gamma(x))`; with `micro`, m-USAM, the mean
    of that over micro-batches.

    Args:
        loss: `loss(params, batch)`, a mean over samples.
        optimizer: any optax optimizer.
        rho: perturbation radius, a number (which jax may trace) or an optax schedule.
        micro: `m`, for m-USAM.
        groups: `"vmap"` or `"accumulate"`.
        has_aux: the loss gives `(loss, aux)`.
        has_key: the loss takes a `key`.
        axis_name: of the devices that share a batch.
        perturbation: what they do, `"local"` or `"synchronised"`; with `micro` it is local.

    Raises:
        ValueError: as :class:`Optimizer`.
        TypeError: as :class:`Optimizer`.

    Source: Andriushchenko & Flammarion 2022.

    >>> import jax, optax, jax.numpy as jnp
    >>> loss = lambda params, batch: jnp.mean((batch["input"] @ params - batch["target"]) ** 2) / 2
    >>> params, batch = jnp.array([1.0, -1.0]), {"input": jnp.eye(4, 2), "target": jnp.arange(4.0)}
    >>> opt = usam(loss, optax.sgd(0.1, momentum=0.9), rho=0.1)
    >>> step, state = jax.jit(opt.step), opt.init(params)
    >>> for _ in range(3):
    ...     params, state, info = step(params, state, batch)
    >>> print(f"{info.loss:.3f}")
    2.161
    """
    name = "usam" if micro is None else "m-usam"
    return from_variant(
        name,
        loss,
        optimizer,
        rho,
        micro=micro,
        groups=groups,
        has_aux=has_aux,
        has_key=has_key,
        axis_name=axis_name,
        perturbation=perturbation,
    )


def sam(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    rho: Number,
    *,
    eps: Number = 0.0,
    has_aux: bool = False,
    has_key: bool = False,
    axis_name: str | None = None,
    perturbation: Together | None = None,
) -> Optimizer:
    """Sharpness-aware minimization, `G = grad f_gamma(x + rho u)`,
    `u = grad f_gamma / sqrt(|grad f_gamma|^2 + eps^2)`.

    Args:
        loss: `loss(params, batch)`, a mean over samples.
        optimizer: any optax optimizer.
        rho: perturbation radius, a number (which jax may trace) or an optax schedule.
        eps: of the normaliser; at 0 a vanishing gradient perturbs nothing.
        has_aux: the loss gives `(loss, aux)`.
        has_key: the loss takes a `key`.
        axis_name: of the devices that share a batch.
        perturbation: what they do, `"local"` (which is m-SAM) or `"synchronised"`.

    Raises:
        ValueError: as :class:`Optimizer`.
        TypeError: as :class:`Optimizer`.

    Source: Foret, Kleiner, Mobahi & Neyshabur 2021.

    >>> import jax, optax, jax.numpy as jnp
    >>> loss = lambda params, batch: jnp.mean((batch["input"] @ params - batch["target"]) ** 2) / 2
    >>> params, batch = jnp.array([1.0, -1.0]), {"input": jnp.eye(4, 2), "target": jnp.arange(4.0)}
    >>> optimizer = optax.chain(
    ...     optax.clip_by_global_norm(1.0), optax.adamw(optax.cosine_decay_schedule(0.1, 100))
    ... )
    >>> opt = sam(loss, optimizer, rho=0.05)
    >>> params, state, info = jax.jit(opt.step)(params, opt.init(params), batch)
    >>> print(params)
    [ 0.89... -0.89...]
    """
    return from_variant(
        "sam",
        loss,
        optimizer,
        rho,
        eps=eps,
        has_aux=has_aux,
        has_key=has_key,
        axis_name=axis_name,
        perturbation=perturbation,
    )


def m_sam(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    rho: Number,
    micro: int,
    *,
    eps: Number = 0.0,
    groups: Groups = "vmap",
    has_aux: bool = False,
    has_key: bool = False,
    axis_name: str | None = None,
) -> Optimizer:
    """SAM in micro-batches, `G` the mean over them of `grad f_I(x + rho u_I)`,
    `u_I = grad f_I / sqrt(|grad f_I|^2 + eps^2)`.

    Args:
        loss: `loss(params, batch)`, a mean over samples.
        optimizer: any optax optimizer.
        rho: perturbation radius, a number (which jax may trace) or an optax schedule.
        micro: `m`, dividing the batch (a device's batch, under `axis_name`).
        eps: of the normaliser; at 0 a vanishing gradient perturbs nothing.
        groups: `"vmap"`, all at once, with a copy of the parameters each, or `"accumulate"`, one
            after the other.
        has_aux: the loss gives `(loss, aux)`.
        has_key: the loss takes a `key`.
        axis_name: of the devices that share a batch; each has micro-batches of its own.

    Raises:
        ValueError: as :class:`Optimizer`.
        TypeError: as :class:`Optimizer`.

    Source: Foret, Kleiner, Mobahi & Neyshabur 2021, section 4.1; Luo et al., arXiv 2509.18001,
    section 3.

    >>> import jax, optax, jax.numpy as jnp
    >>> loss = lambda params, batch: jnp.mean((batch["input"] @ params - batch["target"]) ** 2) / 2
    >>> params, batch = jnp.array([1.0, -1.0]), {"input": jnp.eye(4, 2), "target": jnp.arange(4.0)}
    >>> at_once, in_turn = (
    ...     m_sam(loss, optax.sgd(0.1), 0.05, micro=2, groups=groups)
    ...     for groups in ("vmap", "accumulate")
    ... )
    >>> state = at_once.init(params)
    >>> bool(
    ...     jnp.allclose(
    ...         at_once.step(params, state, batch)[0], in_turn.step(params, state, batch)[0]
    ...     )
    ... )
    True
    """
    if micro is None:
        raise ValueError(
            "m_sam needs micro, the samples of a micro-batch; for the whole batch use sam"
        )
    return from_variant(
        "m-sam",
        loss,
        optimizer,
        rho,
        micro=micro,
        eps=eps,
        groups=groups,
        has_aux=has_aux,
        has_key=has_key,
        axis_name=axis_name,
    )


def n_sam(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    rho: Number,
    *,
    eps: Number = 0.0,
    has_aux: bool = False,
    has_key: bool = False,
    axis_name: str | None = None,
) -> Optimizer:
    """SAM perturbed along the whole data set, `G = grad f_gamma(x + rho u)`,
    `u = grad f / sqrt(|grad f|^2 + eps^2)`.

    Each step is given `whole`, the gradient `grad f(x)`, from :meth:`Optimizer.whole_gradient`
    (arrays) or :meth:`Optimizer.whole_gradient_over` (batches from the host).

    Args:
        loss: `loss(params, batch)`, a mean over samples.
        optimizer: any optax optimizer.
        rho: perturbation radius, a number (which jax may trace) or an optax schedule.
        eps: of the normaliser; at 0 a vanishing gradient perturbs nothing.
        has_aux: the loss gives `(loss, aux)`.
        has_key: the loss takes a `key`.
        axis_name: of the devices that share a batch.

    Raises:
        ValueError: as :class:`Optimizer`.
        TypeError: as :class:`Optimizer`.

    Source: Luo et al., arXiv 2509.18001, section 3.

    >>> import jax, optax, jax.numpy as jnp
    >>> loss = lambda params, batch: jnp.mean((batch["input"] @ params - batch["target"]) ** 2) / 2
    >>> params, batch = jnp.array([1.0, -1.0]), {"input": jnp.eye(4, 2), "target": jnp.arange(4.0)}
    >>> opt = n_sam(loss, optax.sgd(0.1), rho=0.05)
    >>> data, state = {"input": jnp.ones((7, 2)), "target": jnp.arange(7.0)}, opt.init(params)
    >>> params, state, info = opt.step(
    ...     params, state, batch, whole=opt.whole_gradient(params, data, chunk=4)
    ... )
    >>> loader = [batch, data]  # any iterable of batches
    >>> params, state, info = opt.step(
    ...     params, state, batch, whole=opt.whole_gradient_over(params, loader)
    ... )
    """
    return from_variant(
        "n-sam",
        loss,
        optimizer,
        rho,
        eps=eps,
        has_aux=has_aux,
        has_key=has_key,
        axis_name=axis_name,
    )


def dnsam(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    rho: Number,
    *,
    eps: Number = 0.0,
    has_aux: bool = False,
    has_key: bool = False,
    axis_name: str | None = None,
    perturbation: Together | None = None,
) -> Optimizer:
    """SAM with a deterministic normaliser, `G = grad f_gamma(x + rho u)`,
    `u = grad f_gamma / sqrt(|grad f|^2 + eps^2)`.

    Each step is given `whole`, the gradient `grad f(x)`, as in :func:`n_sam`.

    Args:
        loss: `loss(params, batch)`, a mean over samples.
        optimizer: any optax optimizer.
        rho: perturbation radius, a number (which jax may trace) or an optax schedule.
        eps: of the normaliser; where `grad f` and `eps` vanish nothing is perturbed.
        has_aux: the loss gives `(loss, aux)`.
        has_key: the loss takes a `key`.
        axis_name: of the devices that share a batch.
        perturbation: what they do, `"local"` or `"synchronised"`.

    Raises:
        ValueError: as :class:`Optimizer`.
        TypeError: as :class:`Optimizer`.

    Source: Monzio Compagnoni et al. 2023, arXiv 2301.08203.

    >>> import jax, optax, jax.numpy as jnp
    >>> loss = lambda params, batch: jnp.mean((batch["input"] @ params - batch["target"]) ** 2) / 2
    >>> params, batch = jnp.array([1.0, -1.0]), {"input": jnp.eye(4, 2), "target": jnp.arange(4.0)}
    >>> opt = dnsam(loss, optax.sgd(0.1), rho=0.05)
    >>> params, state, info = opt.step(
    ...     params, opt.init(params), batch, whole=opt.whole_gradient(params, batch)
    ... )
    """
    return from_variant(
        "dnsam",
        loss,
        optimizer,
        rho,
        eps=eps,
        has_aux=has_aux,
        has_key=has_key,
        axis_name=axis_name,
        perturbation=perturbation,
    )


def rw_sam(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    rho: Number,
    lam: Number,
    *,
    norms: NormEstimate | None = None,
    eps: Number = 0.0,
    has_aux: bool = False,
    has_key: bool = False,
    axis_name: str | None = None,
    perturbation: Together | None = None,
) -> Optimizer:
    """Reweighted SAM, `G = grad f_gamma(x + rho u)`, `u = v / sqrt(|v|^2 + eps^2)`,
    `v = sum_i p_i g_i` over the mini-batch.

    The weights `p_i` are proportional to `exp(lam nu_i)`, `nu_i` an estimate of `|g_i|` from one
    more forward pass. The loss must not be a mean: it gives one value for each sample, and
    `f_gamma` is their mean. In half precision the difference quotient drowns in rounding: compute
    the loss in float32, or take `norms=NormEstimate(law="exact")`.

    Args:
        loss: `loss(params, batch)`, shape (b,), the loss of each sample.
        optimizer: any optax optimizer.
        rho: perturbation radius, a number (which jax may trace) or an optax schedule.
        lam: inverse temperature `lambda`, at least 0; 0 gives SAM.
        norms: how `|g_i|` is estimated; by default from one Rademacher direction.
        eps: of the normaliser; at 0 a vanishing `v` perturbs nothing.
        has_aux: the loss gives `(losses, aux)`.
        has_key: the loss takes a `key`.
        axis_name: of the devices that share a batch.
        perturbation: what they do, `"local"` (weights within a device's part of the batch) or
            `"synchronised"`.

    Raises:
        ValueError: as :class:`Optimizer`.
        TypeError: as :class:`Optimizer`.

    Source: Luo et al., arXiv 2509.18001, section 4.

    >>> import jax, optax, jax.numpy as jnp
    >>> losses = lambda params, batch: ((batch["input"] @ params - batch["target"]) ** 2) / 2
    >>> params, batch = jnp.array([1.0, -1.0]), {"input": jnp.eye(4, 2), "target": jnp.arange(4.0)}
    >>> opt = rw_sam(losses, optax.sgd(0.1), rho=0.05, lam=1.0)
    >>> params, state, info = opt.step(params, opt.init(params), batch, key=jax.random.key(0))
    >>> print(f"{info.loss:.3f}")
    2.2...
    """
    return from_variant(
        "rw-sam",
        loss,
        optimizer,
        rho,
        lam=lam,
        norms=norms,
        eps=eps,
        has_aux=has_aux,
        has_key=has_key,
        axis_name=axis_name,
        perturbation=perturbation,
    )
