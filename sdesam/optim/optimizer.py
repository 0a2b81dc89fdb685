"""One training step: micro-batches to the step kernel, the mean of their perturbed gradients to an
optax optimizer.

The mathematics of a variant is in `sdesam.optim.kernel` and nowhere else. What is here concerns
training: how micro-batches are run, devices, keys, auxiliary values, and the checks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, get_args

import jax
import jax.numpy as jnp
import optax

from sdesam._util.checks import check_int
from sdesam._util.names import unknown
from sdesam._util.precision import wide
from sdesam.optim.averages import accumulated, mean_of_devices, mean_of_micro_batches, told_apart
from sdesam.optim.batches import Batches, Groups, by_scope, in_micro_batches, numbered
from sdesam.optim.checks import (
    Together,
    check_devices,
    check_params,
    check_rule,
    check_state,
    check_whole,
    checked_losses,
    known,
    missing_arguments,
    samples,
    schedule,
)
from sdesam.optim.kernel import (
    Ascent,
    Evaluation,
    Perturbed,
    check_delta_at,
    perturbed_gradient,
    random_key,
    shared_vectors,
)
from sdesam.optim.state import Info, State
from sdesam.sampling import check_own, check_perturbation
from sdesam.variants import Gradient, NormEstimate, Variant, Vector
from sdesam.variants import variant as find_variant

__all__ = ["Groups", "Info", "Number", "Optimizer", "State", "Together"]

PyTree = Any
Number = float | jax.Array | Callable[[Any], Any]
"""A number, which jax may trace, or a schedule: a function of the number of steps taken."""


# The order of operations of one step, with numbers: the loss (x - a)^2 / 2, x = 3, the batch
# a = (0, 4), rho = 0.5, eps = 0 and optax.sgd(0.1).
#
#                                        m_sam, micro=1              sam
#     gradient of each micro-batch at x  3          -1               1 (of their mean)
#     direction u, the unit vector       1          -1               1
#     perturbed place x + rho u          3.5        2.5              3.5
#     gradient there                     3.5        -1.5             3.5 - 2 = 1.5
#     G, the mean over micro-batches     (3.5 - 1.5) / 2 = 1         1.5
#     what optax does with it            x - 0.1 G = 2.9             2.85
#     info.loss, at x                    (4.5 + 0.5) / 2 = 2.5       2.5
#
# Three things are easy to get wrong. The perturbation comes before the mean: m-SAM's directions
# point both ways here, and the gradient of a mean would hide that. The update starts at x and not
# at the perturbed place. And momentum, weight decay, clipping and schedules see G alone: they come
# after the perturbation, and no part of them is perturbed.


class Optimizer:
    """A SAM variant around an optax optimizer, which is given `G = mean_I grad f_I(x + rho u_I)`
    for a gradient.

    Made by :func:`usam`, :func:`sam`, :func:`m_sam`, :func:`n_sam`, :func:`dnsam`, :func:`rw_sam`,
    and for any rule by :func:`from_variant`.
    `init` and :meth:`step` are all that training needs; :meth:`update` is optax's form of the step.
    They may be compiled, scanned, and mapped over seeds.

    Args:
        variant: a name in :data:`sdesam.VARIANTS`, or a :class:`sdesam.Variant` of your own.
        loss: `loss(params, batch, *args)`, the mean loss of a batch or, shape (b,), the loss of
            each of its samples (rw-sam needs these); `args` are those given to :meth:`step`, the
            same for every micro-batch. It must be a mean over samples: micro-batches are averaged.
        optimizer: any optax optimizer; momentum, weight decay, schedules, clipping and masks act on
            `G`, not on the perturbation: a parameter that optax freezes is perturbed all the same.
            To leave one alone, keep it out of `params`, in `args`.
        rho: perturbation radius, a number (jax may trace it: `vmap` and `grad` over it work) or an
            optax schedule, a function of the number of steps taken. A traced or scheduled number
            that is negative makes the step NaN. Left out for a rule without a perturbation.
        micro: `m`, the samples of a micro-batch: the first `m` of the batch (of a device's, under
            `axis_name`), the next `m`, and so on.
        eps: of the normaliser `sqrt(|.|^2 + eps^2)`, as `rho` a number or a schedule; at `eps = 0`
            a vanishing gradient perturbs nothing. Norms are taken in float32 at least and scaled:
            small gradients and small `eps` do not underflow in half precision.
        lam: inverse temperature of the Gibbs weights, as `rho` a number or a schedule.
        norms: how gradient norms are estimated for the Gibbs weights.
        groups: how micro-batches are run: `"vmap"`, all at once, or `"accumulate"`, one after the
            other with the memory of one.
        has_aux: whether the loss gives `(loss, aux)`, as in `jax.grad`. Auxiliary values (batch
            statistics, metrics) are those at the unperturbed parameters. Over micro-batches and
            devices floating-point values are averaged, of whole numbers (counters) the largest is
            taken, of random keys the first.
        has_key: whether the loss takes a keyword `key` (dropout). A micro-batch has the same key in
            all its passes, and other micro-batches others: number `j`, counted over all devices,
            has `jax.random.fold_in(jax.random.split(key)[0], j)`. (Of keys that are not threefry's,
            jax draws other numbers at once than in turn.)
        axis_name: of the devices that share the mini-batch inside `shard_map` or `pmap`, in equal
            parts. Results are averaged over it: do not average again. None outside of these, also
            where `jit` is given a batch spread over devices.
        perturbation: with `axis_name`: `"local"`, each device has its own perturbation (which makes
            sam m-sam, with m the samples of a device), or `"synchronised"`, all have that of the
            whole mini-batch.
        own: the rule's own numbers by name, each as `rho` a number or a schedule; they may be
            negative.

    Raises:
        ValueError: numbers that do not fit the variant, `lam < 0`, an unknown name, `axis_name`
            without `perturbation`.
        TypeError: `loss` is no function, `optimizer` none of optax's.

    >>> opt = Optimizer("usam", lambda x, batch: 0.5 * (x - batch) ** 2, optax.sgd(0.1), rho=0.5)
    >>> x = jnp.array(2.0)
    >>> x, state, info = opt.step(x, opt.init(x), jnp.array([0.0, 0.0]))
    >>> float(x), float(info.loss)  # 2 - 0.1 * (2 + 0.5 * 2), the mean of [2, 2]
    (1.7..., 2.0)
    """

    def __init__(
        self,
        variant: str | Variant,
        loss: Callable[..., Any],
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
        own: Mapping[str, Number] | None = None,
    ):
        self.variant = find_variant(variant)
        check_rule(self.variant)
        name = self.variant.name
        if not callable(loss):
            raise TypeError(f"loss={loss!r}: it must be a function (params, batch) -> loss")
        if isinstance(optimizer, optax.MultiSteps):
            optimizer = optax.GradientTransformationExtraArgs(optimizer.init, optimizer.update)
        if not isinstance(optimizer, optax.GradientTransformation):
            raise TypeError(
                f"optimizer={optimizer!r}: it must be an optax optimizer, such as optax.sgd(0.1,"
                " momentum=0.9)"
            )
        self.loss, self.inner = loss, optax.with_extra_args_support(optimizer)
        *checked, self.norms = check_perturbation(
            self.variant, known(rho), known(eps), known(lam), norms
        )
        given = zip(("rho", "eps", "lam"), (rho, eps, lam), checked, strict=True)
        self.rho, self.eps, self.lam = (
            schedule(what, number, valid) for what, number, valid in given
        )
        own = {} if own is None else own
        valid_own = check_own(self.variant, {what: known(number) for what, number in own.items()})
        self.own = {
            what: schedule(what, own[what], valid, least=-jnp.inf)
            for what, valid in valid_own.items()
        }
        if micro is not None and not self.variant.micro:
            raise ValueError(
                f"micro={micro!r}: {name} has no micro-batches; leave micro out, or use m_sam"
            )
        self.micro = None if micro is None else check_int("micro", micro)
        if groups not in get_args(Groups):
            raise unknown("way to run groups", groups, get_args(Groups))
        self.groups = groups
        self.has_aux, self.has_key = bool(has_aux), bool(has_key)
        self.axis_name = axis_name
        self.together = check_devices(self.variant, axis_name, perturbation)

    def init(self, params: PyTree) -> State:
        """The state before the first step.

        Args:
            params: any pytree of floating-point arrays.

        Raises:
            TypeError: parameters of another kind.
            ValueError: the step of rw-sam's difference quotient is below the rounding of the
                parameters. That it is not below the rounding of the losses either, which are not
                known here, is for you to see to: :class:`sdesam.NormEstimate` says how.
        """
        check_params(params, self.norms)
        check_delta_at(self.norms, params)
        return State(jnp.zeros((), jnp.int32), self.inner.init(params), self.variant.name)

    def step(
        self,
        params: PyTree,
        state: State,
        batch: PyTree,
        *args: Any,
        key: Any = None,
        whole: PyTree = None,
        fresh: PyTree = None,
        **extra: Any,
    ) -> tuple[PyTree, State, Info]:
        """One step: `(params, state, info)` after it.

        Args:
            params: the parameters `x`.
            state: from :meth:`init` or the step before.
            batch: the mini-batch (under `axis_name` the device's part, of equal size), for the
                loss; with micro-batches a pytree of arrays whose leading axis is the sample.
            args: for the loss, beside `params` and `batch`.
            key: a jax random key of any implementation, for a loss with `has_key` and for rw-sam's
                random directions, or those of a rule; the same on every device.
            whole: `grad f(x)` over the data set, for n-sam, dnsam and other rules of
                `gradient("data")`: see :meth:`whole_gradient`.
            fresh: for a rule of `gradient(fresh)` another mini-batch, of as many samples where
                there are micro-batches: each has the samples at its own places. For `fresh(2)`
                beside it a tuple of two. In a loss with `has_key` they have keys of their own.
            extra: further arguments of the optax optimizer; `value`, the loss at `params`, is given
                to it anyway. A line search (`optax.lbfgs`) needs the function that it searches
                along `G`, `value_fn=lambda params: ...`; the value and the gradient of that
                function at `params` are then given to it, too.

        Raises:
            ValueError: a state from another variant or other parameters, micro-batches that do not
                divide the batch, a loss without per-sample values for rw-sam, `key` or `whole`
                missing or not needed.
            TypeError: an argument of another kind, or one missing that the optax optimizer needs.
            NotImplementedError: jax cannot batch the loss, a grouped convolution on a mesh of
                devices; the message says what can.
        """
        found = self.gradient(params, state, batch, *args, key=key, whole=whole, fresh=fresh)
        updates, state = self._inner_update(found, params, state, extra)
        return optax.apply_updates(params, updates), state, Info(found.loss, found.aux)

    def update(
        self,
        updates: PyTree,
        state: State,
        params: PyTree = None,
        *,
        batch: PyTree,
        args: tuple[Any, ...] = (),
        key: Any = None,
        whole: PyTree = None,
        fresh: PyTree = None,
        **extra: Any,
    ) -> tuple[PyTree, State]:
        """The step in optax's form:
        `updates, state = opt.update(grads, state, params, batch=batch)`, then
        `optax.apply_updates`.

        Args:
            updates: gradients at `params`, which an optax loop has; not used (None will do), since
                the perturbation may need others. Compiled together with the same loss on the same
                batch, the common pass is made once where there is one micro-batch.
            state: the state.
            params: the parameters, not to be left out.
            batch: as in :meth:`step`, and so the rest.
            args: for the loss, as a tuple.
            key: a jax random key.
            whole: `grad f(x)`.
            fresh: a mini-batch drawn apart.
            extra: further arguments of the optax optimizer.

        >>> opt = Optimizer(
        ...     "sam", lambda x, batch: jnp.mean((x - batch) ** 2), optax.adam(0.1), rho=0.05
        ... )
        >>> x, batch = jnp.array(2.0), jnp.array([0.0, 1.0])
        >>> updates, state = opt.update(None, opt.init(x), x, batch=batch)
        >>> float(optax.apply_updates(x, updates))
        1.9...
        """
        if params is None:
            raise ValueError(
                f"update needs the parameters: {self.variant.name} takes its gradient beside them"
            )
        found = self.gradient(params, state, batch, *args, key=key, whole=whole, fresh=fresh)
        return self._inner_update(found, params, state, extra)

    @property
    def transformation(self) -> optax.GradientTransformationExtraArgs:
        """This optimizer's `init` and `update` as an `optax.GradientTransformationExtraArgs`, for
        `optax.chain`, `optax.apply_if_finite` and the like.
        """
        return optax.GradientTransformationExtraArgs(self.init, self.update)

    def gradient(
        self,
        params: PyTree,
        state: State,
        batch: PyTree,
        *args: Any,
        key: Any = None,
        whole: PyTree = None,
        fresh: PyTree = None,
    ) -> Perturbed:
        """What the optax optimizer is given: `G`, with the loss and the auxiliary values at
        `params`. Arguments as in :meth:`step`.
        """
        check_params(params, self.norms)
        check_state(state, self.variant, self.inner, params)
        # one key for the loss, which may drop units, and one for random directions: were they one,
        # the directions would depend on which units are dropped
        loss_key, direction_key = self._keys(key)
        params = _moving(params)
        check_whole(whole, self.variant, params)
        # schedules count the steps taken before this one: the first step has number 0
        own = {name: number(state.count) for name, number in self.own.items()}
        rho, eps, lam = (number(state.count) for number in (self.rho, self.eps, self.lam))
        parts, count = in_micro_batches(
            by_scope(self.variant, batch, fresh), self.micro, self.axis_name
        )
        # micro-batches are numbered over all devices, so that each has a key of its own: with 4 of
        # them on each of 2 devices, the second device begins with number 4
        first: Any = 0
        x = params
        if self.axis_name is not None:
            first, x = (
                jax.lax.axis_index(self.axis_name) * count,
                told_apart(params, self.axis_name),
            )
        losses = partial(self._losses, args=args)
        drawn = Batches(losses, parts, count, first, loss_key, self.groups)
        known: dict[Vector, PyTree] = {} if whole is None else {Gradient("data"): whole}
        at_x = Evaluation({}, x, Ascent(rho, eps, lam, own), known, self.norms, direction_key)

        def micro_batch(parts: dict[str, PyTree], number: Any) -> Perturbed:
            evaluation = replace(
                shared,
                losses={**shared.losses, **drawn.losses(parts, number)},
                known=dict(shared.known),
                own_key=self._own_key(direction_key, number),
                together=self.together,
                seen={},
                parts={},
            )
            return perturbed_gradient(self.variant, evaluation)

        try:
            shared = self._shared(at_x, drawn)
            if count == 1:
                found = micro_batch(parts, first)
            elif self.groups == "vmap":
                each = jax.vmap(micro_batch)(parts, drawn.numbers)
                found = jax.tree.map(mean_of_micro_batches, each)
            else:
                found = accumulated(micro_batch, x, parts, drawn.numbers)
        except NotImplementedError as error:
            if str(error):
                raise
            raise NotImplementedError(_NOT_BATCHED) from error
        return (
            found
            if self.axis_name is None
            else jax.tree.map(partial(mean_of_devices, axis_name=self.axis_name), found)
        )

    def _shared(self, at_x: Evaluation, drawn: Batches) -> Evaluation:
        """`at_x` with the vectors of the whole mini-batch, over all devices, for a rule that speaks
        of micro-batches, too: `grad f_gamma` of shared-norm-sam.
        """
        if not self.variant.micro or "batch" not in self.variant.direction.scopes:
            return at_x
        shared = replace(at_x, losses={"batch": drawn.mini_batch}, together=self.axis_name)
        for v in shared_vectors(self.variant.direction):
            shared.vector(v)
        return shared

    def _own_key(self, direction_key: Any, number: Any) -> Any:
        """The key of the rule's random directions in one micro-batch, apart from that of norms;
        devices that perturb together have one.
        """
        if not self._own_directions:
            return None
        own_key = jax.random.fold_in(direction_key, 1)
        return numbered(own_key, number if self.together is None else 0)

    def whole_gradient(
        self, params: PyTree, data: PyTree, *args: Any, chunk: int = 256, key: Any = None
    ) -> PyTree:
        """`grad f(x)` over a data set of arrays, chunk by chunk, for the `whole` of :meth:`step`.

        It is taken when you say so: every step for n-SAM and DNSAM as they are defined; every k-th,
        with the old one handed on in between, for less cost and another algorithm.

        Args:
            params: the parameters `x`.
            data: a pytree of arrays whose leading axis is the sample (under `axis_name` the
                device's part, of equal size).
            args: for the loss.
            chunk: samples that the loss is given at a time; the last chunk may be smaller and
                weighs less.
            key: for a loss with `has_key`; chunks have keys of their own.

        Raises:
            ValueError: leading axes of different length.

        >>> opt = Optimizer(
        ...     "n-sam", lambda x, batch: jnp.mean((x - batch) ** 2) / 2, optax.sgd(0.1), rho=0.1
        ... )
        >>> x, data = jnp.array(2.0), jnp.arange(5.0)
        >>> float(opt.whole_gradient(x, data[:4], chunk=3))
        0.5
        >>> x, state, info = opt.step(x, opt.init(x), data[:2], whole=opt.whole_gradient(x, data))
        """
        check_params(params, self.norms)
        params = _moving(params)
        n, chunk = samples(data), check_int("chunk", chunk)
        loss_key, _ = self._keys(key, directions=False)
        full, x = (
            n // chunk,
            (params if self.axis_name is None else told_apart(params, self.axis_name)),
        )

        def part(data: PyTree, number: Any) -> PyTree:
            return self._summed(x, data, args, numbered(loss_key, number))

        # seven samples in chunks of three: a scan over two full chunks, and one sample left. Each
        # chunk adds the SUM of its gradients, so that the last one weighs 1/7 and not 1/3
        total = jax.tree.map(jnp.zeros_like, wide(x))
        if full:
            head = jax.tree.map(
                lambda leaf: leaf[: full * chunk].reshape(full, chunk, *leaf.shape[1:]), data
            )
            total, _ = jax.lax.scan(
                lambda total, one: (jax.tree.map(jnp.add, total, part(*one)), None),
                total,
                (head, jnp.arange(full)),
            )
        if full * chunk < n:
            tail = jax.tree.map(lambda leaf: leaf[full * chunk :], data)
            total = jax.tree.map(jnp.add, total, part(tail, full))
        # back to the parameters' own precision only now: the sum was taken in float32 at least
        mean = jax.tree.map(lambda leaf, like: (leaf / n).astype(like.dtype), total, params)
        # shards are of equal size
        return mean if self.axis_name is None else jax.lax.pmean(mean, self.axis_name)

    def whole_gradient_over(
        self, params: PyTree, batches: Iterable[PyTree], *args: Any, key: Any = None
    ) -> PyTree:
        """`grad f(x)` over a data set that comes in batches, of any sizes, from the host: the
        counterpart of :meth:`whole_gradient`.

        Not for use inside compiled code. Each batch weighs by its number of samples; a new size
        compiles anew.

        Args:
            params: the parameters `x`.
            batches: an iterable of batches, read once.
            args: for the loss.
            key: for a loss with `has_key`; batches have keys of their own.

        Raises:
            ValueError: no batches, as from a generator that was used up.

        >>> opt = Optimizer(
        ...     "n-sam", lambda x, batch: jnp.mean((x - batch) ** 2) / 2, optax.sgd(0.1), rho=0.1
        ... )
        >>> float(
        ...     opt.whole_gradient_over(
        ...         jnp.array(2.0), [jnp.array([0.0, 1.0, 2.0]), jnp.array([3.0])]
        ...     )
        ... )
        0.5
        """
        check_params(params, self.norms)
        params = _moving(params)
        loss_key, _ = self._keys(key, directions=False)
        total, n = jax.tree.map(jnp.zeros_like, wide(params)), 0
        for number, batch in enumerate(batches):
            total = _add_batch(self, total, params, batch, args, numbered(loss_key, number))
            n += samples(batch)
        if n == 0:
            raise ValueError(
                "batches gave no batch: give a list, a loader, or a fresh generator (a generator"
                " can be read only once)"
            )
        return jax.tree.map(lambda leaf, like: (leaf / n).astype(like.dtype), total, params)

    def _summed(self, x: PyTree, batch: PyTree, args: tuple[Any, ...], key: Any) -> PyTree:
        """The gradient of the SUM of the losses of a batch."""
        # a loss may return its mean, so the sum is the mean times the number of samples
        g = jax.grad(lambda y: jnp.mean(self._losses(y, batch, args, key)[0]))(x)
        return jax.tree.map(lambda leaf: leaf * samples(batch), wide(g))

    def _losses(
        self, y: PyTree, batch: PyTree, args: tuple[Any, ...], key: Any
    ) -> tuple[jax.Array, Any]:
        """The user's loss as the kernel wants it."""
        out = self.loss(y, batch, *args, key=key) if self.has_key else self.loss(y, batch, *args)
        return checked_losses(out, self.has_aux, self.variant, self.norms, batch)

    def _keys(self, key: Any, directions: bool = True) -> tuple[Any, Any]:
        """The keys of the loss and of the random directions; None where there is no use for one."""
        directions = directions and self.draws_directions
        if key is None:
            if directions and self._own_directions:
                raise ValueError(f"{self.variant.name} draws random directions: give a key")
            if directions:
                raise ValueError(
                    f"{self.variant.name} estimates norms along random directions: give a key, or"
                    " norms=NormEstimate(law='exact')"
                )
            if self.has_key:
                raise ValueError("has_key=True: the loss is random and needs a key")
            return None, None
        if not directions and not self.has_key:
            raise ValueError(
                "key: nothing here is random; leave it out, or say has_key=True if the loss takes"
                " a key"
            )
        key = random_key(key)
        # without a random loss nothing is split off: the key that was given is the key of the
        # directions, and a test can draw the same ones
        if not self.has_key:
            return None, key
        loss_key, direction_key = jax.random.split(key)
        return loss_key, (direction_key if directions else None)

    def _inner_update(
        self, found: Perturbed, params: PyTree, state: State, extra: dict[str, Any]
    ) -> tuple[PyTree, State]:
        # optimizers that look at the loss, such as a reduction on plateaus, get it without a pass
        # of their own; what the caller gives goes before
        extra = {"value": found.loss, **extra}
        if "value_fn" in extra and "grad" not in extra:
            # what a line search compares must be of one function: G is not the gradient of
            # `value_fn`
            extra["value"], extra["grad"] = jax.value_and_grad(extra["value_fn"])(_moving(params))
        try:
            updates, inner = self.inner.update(found.gradient, state.inner, params, **extra)
        except TypeError as error:
            missing = missing_arguments(error)
            if missing is None:
                raise
            raise missing from error
        return updates, State(state.count + 1, inner, state.variant)

    @property
    def draws_directions(self) -> bool:
        """Whether a step needs a key for random directions, of the rule or of rw-sam's norms."""
        return self._own_directions or (self.norms is not None and self.norms.random)

    @property
    def _own_directions(self) -> bool:
        return "direction" in self.variant.direction.scopes

    def __repr__(self) -> str:
        return f"Optimizer({self.variant.name!r})"


_NOT_BATCHED = (
    "the loss raised a NotImplementedError without words; jax does so where a grouped convolution"
    " on a mesh of devices is batched: run micro-batches one after the other, groups='accumulate',"
    " and in the loss use jax.lax.map for jax.vmap"
)


def _moving(params: PyTree) -> PyTree:
    """The parameters that a gradient is taken by; `optax.lookahead` has slow ones beside them."""
    return params.fast if isinstance(params, optax.LookaheadParams) else params


@partial(jax.jit, static_argnums=0)
def _add_batch(
    optimizer: Optimizer,
    total: PyTree,
    params: PyTree,
    batch: PyTree,
    args: tuple[Any, ...],
    key: Any,
) -> PyTree:
    return jax.tree.map(jnp.add, total, optimizer._summed(params, batch, args, key))
