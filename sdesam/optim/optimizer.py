"""One training step: micro-batches to the step kernel, the mean of their perturbed gradients to an
optax optimizer.

The mathematics of a variant is in `sdesam.discrete.kernel` and nowhere else. What is here concerns
training: how micro-batches are run, devices, keys, auxiliary values, and the checks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from sdesam._checks import check_int
from sdesam._names import unknown
from sdesam._precision import wide
from sdesam.discrete.kernel import (
    Ascent,
    Perturbed,
    check_delta,
    check_delta_at,
    perturbed_gradient,
    random_key,
)
from sdesam.sampling import check_perturbation
from sdesam.variants import NormEstimate, Variant
from sdesam.variants import variant as find_variant

PyTree = Any
Groups = Literal["vmap", "accumulate"]
Together = Literal["local", "synchronised"]
Number = float | jax.Array | Callable[[Any], Any]
"""A number, which jax may trace, or a schedule: a function of the number of steps taken."""


class State(NamedTuple):
    """The state of an :class:`Optimizer`; a pytree of the arrays of `count` and `inner`.

    A named tuple, which every way of storing a state knows (`flax.serialization`, orbax, pickle).

    Args:
        count: steps taken.
        inner: the state of the optax optimizer.
        variant: the variant's name; no array, and so a part of the structure.
    """

    count: jax.Array  # type: ignore[assignment]  # the tuple's own `count` counts
    inner: PyTree
    variant: str


def _children(state: State) -> tuple[Any, str]:
    return [
        (jax.tree_util.GetAttrKey(name), getattr(state, name)) for name in ("count", "inner")
    ], state.variant


def _state(variant: str, children: Iterable[Any]) -> State:
    count, inner = children
    return State(count, inner, variant)


jax.tree_util.register_pytree_with_keys(State, _children, _state)


class Info(NamedTuple):
    """What a step tells, all from the unperturbed parameters.

    Args:
        loss: the mean loss of the mini-batch, over all devices.
        aux: the auxiliary values of the loss; None without.
    """

    loss: jax.Array
    aux: Any


class Optimizer:
    """A SAM variant around an optax optimizer, which is given `G = mean_I grad f_I(x + rho u_I)`
    for a gradient.

    Made by :func:`usam`, :func:`sam`, :func:`m_sam`, :func:`n_sam`, :func:`dnsam`, :func:`rw_sam`.
    `init` and :meth:`step` are all that training needs; :meth:`update` is optax's form of the step.
    They may be compiled, scanned, and mapped over seeds.

    Args:
        variant: a name in :data:`sdesam.VARIANTS`.
        loss: `loss(params, batch, *args)`, the mean loss of a batch or, shape (b,), the loss of
            each of its samples (rw-sam needs these); `args` are those given to :meth:`step`, the
            same for every micro-batch. It must be a mean over samples: micro-batches are averaged.
        optimizer: any optax optimizer; momentum, weight decay, schedules, clipping and masks act on
            `G`, not on the perturbation: a parameter that optax freezes is perturbed all the same.
            To leave one alone, keep it out of `params`, in `args`.
        rho: perturbation radius, a number (jax may trace it: `vmap` and `grad` over it work) or an
            optax schedule, a function of the number of steps taken. A traced or scheduled number
            that is negative makes the step NaN.
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
        rho: Number,
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
    ):
        self.variant = find_variant(variant)
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
        *known, self.norms = check_perturbation(
            self.variant, _known(rho), _known(eps), _known(lam), norms
        )
        given = zip(("rho", "eps", "lam"), (rho, eps, lam), known, strict=True)
        self.rho, self.eps, self.lam = (
            _schedule(what, number, checked) for what, number, checked in given
        )
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
        self.together = self._check_devices(perturbation)

    def _check_devices(self, perturbation: str | None) -> str | None:
        """The axis over which devices perturb together, None if each perturbs alone."""
        name = self.variant.name
        if perturbation is not None and perturbation not in get_args(Together):
            raise unknown("perturbation", perturbation, get_args(Together))
        if self.axis_name is None:
            if perturbation is not None:
                raise ValueError(
                    f"perturbation={perturbation!r}: it says what the devices of axis_name do; give"
                    " axis_name too"
                )
            return None
        own = [v for v in self.variant.direction.walk() if getattr(v, "scope", "") == "batch"]
        if self.variant.micro or len(own) < 2:
            if perturbation is not None:
                raise ValueError(
                    f"perturbation={perturbation!r}: {name} leaves no choice; leave"
                    " perturbation out"
                )
            return None
        if perturbation is None:
            raise ValueError(
                f"axis_name={self.axis_name!r}: say whether the devices perturb alone,"
                " perturbation='local' (micro-batches of the size of a device's batch), or"
                f" together, perturbation='synchronised' ({name} of the whole mini-batch)"
            )
        return self.axis_name if perturbation == "synchronised" else None

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
        self._check_params(params)
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
                random directions; the same on every device.
            whole: `grad f(x)` over the data set, for n-sam and dnsam: see :meth:`whole_gradient`.
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
        found = self.gradient(params, state, batch, *args, key=key, whole=whole)
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
        found = self.gradient(params, state, batch, *args, key=key, whole=whole)
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
    ) -> Perturbed:
        """What the optax optimizer is given: `G`, with the loss and the auxiliary values at
        `params`. Arguments as in :meth:`step`.
        """
        self._check_params(params)
        self._check_state(state, params)
        loss_key, direction_key = self._keys(key)
        params = _moving(params)
        self._check_whole(whole, params)
        ascent = Ascent(*(number(state.count) for number in (self.rho, self.eps, self.lam)))
        parts, number_of = self._micro_batches(batch)
        first: Any = 0
        x = params
        if self.axis_name is not None:
            first, x = (
                jax.lax.axis_index(self.axis_name) * number_of,
                told_apart(params, self.axis_name),
            )

        def micro_batch(part: PyTree, number: Any) -> Perturbed:
            losses = partial(self._losses, batch=part, args=args, key=_numbered(loss_key, number))
            return perturbed_gradient(
                self.variant,
                self.norms,
                losses,
                x,
                whole,
                ascent,
                direction_key,
                together=self.together,
            )

        try:
            if number_of == 1:
                found = micro_batch(batch, first)
            else:
                numbers = first + jnp.arange(number_of)
                if self.groups == "vmap":
                    found = jax.tree.map(_mean, jax.vmap(micro_batch)(parts, numbers))
                else:
                    found = _accumulated(micro_batch, x, parts, numbers)
        except NotImplementedError as error:
            if str(error):
                raise
            raise NotImplementedError(_NOT_BATCHED) from error
        return (
            found
            if self.axis_name is None
            else jax.tree.map(partial(_mean_of_devices, axis_name=self.axis_name), found)
        )

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
        self._check_params(params)
        params = _moving(params)
        n, chunk = _samples(data), check_int("chunk", chunk)
        loss_key, _ = self._keys(key, directions=False)
        full, x = (
            n // chunk,
            (params if self.axis_name is None else told_apart(params, self.axis_name)),
        )

        def part(data: PyTree, number: Any) -> PyTree:
            return self._summed(x, data, args, _numbered(loss_key, number))

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
        self._check_params(params)
        params = _moving(params)
        loss_key, _ = self._keys(key, directions=False)
        total, n = jax.tree.map(jnp.zeros_like, wide(params)), 0
        for number, batch in enumerate(batches):
            total = _add_batch(self, total, params, batch, args, _numbered(loss_key, number))
            n += _samples(batch)
        if n == 0:
            raise ValueError(
                "batches gave no batch: give a list, a loader, or a fresh generator (a generator"
                " can be read only once)"
            )
        return jax.tree.map(lambda leaf, like: (leaf / n).astype(like.dtype), total, params)

    def _summed(self, x: PyTree, batch: PyTree, args: tuple[Any, ...], key: Any) -> PyTree:
        """The gradient of the SUM of the losses of a batch."""
        g = jax.grad(lambda y: jnp.mean(self._losses(y, batch, args, key)[0]))(x)
        return jax.tree.map(lambda leaf: leaf * _samples(batch), wide(g))

    def _losses(
        self, y: PyTree, batch: PyTree, args: tuple[Any, ...], key: Any
    ) -> tuple[jax.Array, Any]:
        """The user's loss as the kernel wants it, checked while it is traced."""
        out = self.loss(y, batch, *args, key=key) if self.has_key else self.loss(y, batch, *args)
        if self.has_aux and not (isinstance(out, tuple) and len(out) == 2):
            raise TypeError(
                f"has_aux=True: the loss must give (loss, aux), not {type(out).__name__}"
            )
        values, aux = out if self.has_aux else (out, None)
        if (
            not hasattr(values, "shape")
            or not jnp.issubdtype(values.dtype, jnp.floating)
            or values.ndim > 1
        ):
            hint = "; for (loss, aux) say has_aux=True" if isinstance(values, tuple) else ""
            what = (
                f"{values.dtype}{list(values.shape)}"
                if hasattr(values, "shape")
                else type(values).__name__
            )
            raise TypeError(
                f"the loss gives {what}: it must be one floating-point number, or one for each"
                f" sample{hint}"
            )
        if self.variant.weighted:
            if values.ndim == 0:
                raise ValueError(
                    f"{self.variant.name} weighs samples by their gradients: the loss must give one"
                    " value for each sample, shape (b,), not their mean"
                )
            lengths = _lengths(batch)
            if lengths and values.shape[0] not in lengths:
                raise ValueError(
                    f"the loss gives {values.shape[0]} values for a batch of"
                    f" {' or '.join(map(str, lengths))} samples: {self.variant.name} weighs"
                    " samples, so it must give one value for each, shape (b,)"
                )
            check_delta(self.norms, values)
        return values, aux

    def _micro_batches(self, batch: PyTree) -> tuple[PyTree, int]:
        """The batch with its leading axis split, and the number of parts."""
        if self.micro is None:
            return batch, 1
        b, m = _samples(batch), self.micro
        if b % m:
            where = (
                "in the batch"
                if self.axis_name is None
                else f"that a device holds of the batch (axis {self.axis_name!r})"
            )
            divisors = ", ".join(str(k) for k in range(1, b + 1) if b % k == 0)
            raise ValueError(
                f"micro={m} does not divide the {b} samples {where}: choose one of {divisors}"
            )
        return jax.tree.map(lambda leaf: leaf.reshape(b // m, m, *leaf.shape[1:]), batch), b // m

    def _keys(self, key: Any, directions: bool = True) -> tuple[Any, Any]:
        """The keys of the loss and of the random directions; None where there is no use for one."""
        directions = directions and self.norms is not None and self.norms.random
        if key is None:
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
        if not self.has_key:
            return None, key
        loss_key, direction_key = jax.random.split(key)
        return loss_key, (direction_key if directions else None)

    def _check_params(self, params: PyTree) -> None:
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            if not hasattr(leaf, "dtype") or not jnp.issubdtype(leaf.dtype, jnp.floating):
                what = f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "dtype") else repr(leaf)
                place = jax.tree_util.keystr(path)
                raise TypeError(
                    f"params{place} is {what}: parameters must be floating-point arrays; keep other"
                    " values out of params, in args or the loss (of an equinox module take"
                    " eqx.partition(module, eqx.is_inexact_array), of an nnx one nnx.split(module,"
                    " nnx.Param, ...))"
                )
        if not jax.tree.leaves(params):
            raise ValueError("params holds no array: there is nothing to train")
        check_delta(self.norms, params)

    def _check_state(self, state: Any, params: PyTree) -> None:
        if not isinstance(state, State):
            raise TypeError(
                f"state is a {type(state).__name__}: it must be what init(params) or the last step"
                " of this optimizer gave"
            )
        if state.variant != self.variant.name:
            raise ValueError(
                f"the state is that of {state.variant}, and this is {self.variant.name}: make one"
                " with init(params)"
            )
        try:
            wanted = jax.eval_shape(self.inner.init, params)
        except jax.errors.JAXTypeError:
            return  # an `init` that looks at numbers cannot tell shapes alone
        advice = "it comes from other parameters or another optimizer; make one with init(params)"
        given: Any = jax.tree.structure(state.inner)
        if given != jax.tree.structure(wanted):
            raise ValueError(
                f"the state does not have the structure that these parameters need: {advice}"
            )
        for (path, leaf), like in zip(
            jax.tree_util.tree_leaves_with_path(state.inner), jax.tree.leaves(wanted), strict=True
        ):
            place = f"state.inner{jax.tree_util.keystr(path)}"
            try:
                shape, dtype = jnp.shape(leaf), jnp.result_type(leaf)
            except TypeError:
                raise TypeError(f"{place} is {leaf!r}: it must be a number or an array") from None
            if shape != like.shape:
                raise ValueError(
                    f"{place} has shape {list(shape)}, but these parameters need"
                    f" {list(like.shape)}: {advice}"
                )
            if not _serves(dtype, like):
                raise ValueError(
                    f"{place} is of {dtype}, but these parameters need {like.dtype}: {advice}"
                )

    def _check_whole(self, gradient: PyTree, params: PyTree) -> None:
        name = self.variant.name
        if not self.variant.needs_full_gradient:
            if gradient is not None:
                raise ValueError(
                    f"whole: {name} does not use the gradient of the data set; leave it out"
                )
        elif gradient is None:
            raise ValueError(
                f"{name} needs the gradient of the data set: give whole=opt.whole_gradient(params,"
                " data)"
            )
        elif _shapes(gradient) != _shapes(params):
            raise ValueError(
                "whole does not have the structure of params: it must be the gradient of the data"
                " set at params"
            )

    def _inner_update(
        self, found: Perturbed, params: PyTree, state: State, extra: dict[str, Any]
    ) -> tuple[PyTree, State]:
        extra = {"value": found.loss, **extra}
        if "value_fn" in extra and "grad" not in extra:
            # what a line search compares must be of one function: G is not the gradient of
            # `value_fn`
            extra["value"], extra["grad"] = jax.value_and_grad(extra["value_fn"])(_moving(params))
        try:
            updates, inner = self.inner.update(found.gradient, state.inner, params, **extra)
        except TypeError as error:
            missing = re.search(r"missing \d+ required keyword-only arguments?: (.*)", str(error))
            if missing is None:
                raise
            names = set(re.findall(r"'(\w+)'", missing[1]))
            if "value_fn" in names:  # the gradient comes with it
                names -= {"grad"}
            more = ", ".join(f"{name}=..." for name in sorted(names))
            raise TypeError(
                "the optax optimizer needs more than a gradient: opt.step(params, state, batch,"
                f" {more})"
            ) from error
        return updates, State(state.count + 1, inner, state.variant)

    def __repr__(self) -> str:
        return f"Optimizer({self.variant.name!r})"


_NOT_BATCHED = (
    "the loss raised a NotImplementedError without words; jax does so where a grouped convolution"
    " on a mesh of devices is batched: run micro-batches one after the other, groups='accumulate',"
    " and in the loss use jax.lax.map for jax.vmap"
)


def _serves(dtype: Any, like: Any) -> bool:
    """Whether numbers of `dtype` may stand where the state has those of `like`.

    A number by itself, such as an injected hyperparameter, may be any that optax can compute with;
    in arrays some optax optimizers go over to float32 with their first step. Where floats stand for
    whole numbers, or less precise ones for the parameters', the state is that of others.
    """
    if not jnp.issubdtype(like.dtype, jnp.floating):
        return dtype == like.dtype or bool(
            jnp.issubdtype(dtype, jnp.integer) and jnp.issubdtype(like.dtype, jnp.integer)
        )
    if like.shape == ():
        return bool(jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer))
    return bool(jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize >= like.dtype.itemsize)


def _shapes(tree: PyTree) -> tuple[Any, list[tuple[int, ...]]]:
    leaves, structure = jax.tree.flatten(tree)
    return structure, [jnp.shape(leaf) for leaf in leaves]


def _moving(params: PyTree) -> PyTree:
    """The parameters that a gradient is taken by; `optax.lookahead` has slow ones beside them."""
    return params.fast if isinstance(params, optax.LookaheadParams) else params


def _known(number: Any) -> Any:
    """A number to be checked now; one that is known only later has a valid one in its place."""
    return 1.0 if callable(number) or isinstance(number, jax.core.Tracer) else number


def _schedule(name: str, number: Any, checked: float) -> Callable[[Any], Any]:
    """A number of a step as a function of the steps taken."""
    if callable(number):
        return lambda count: _seen(name, number(count))
    if isinstance(number, jax.core.Tracer):
        seen = _seen(name, number)
        return lambda count: seen
    return lambda count: checked


def _seen(name: str, number: Any) -> Any:
    """A number that compiled code can refuse no more: where it is negative or not finite the step
    is NaN, and seen.
    """
    kind = jnp.result_type(number)
    if jnp.shape(number) != () or not (
        jnp.issubdtype(kind, jnp.floating) or jnp.issubdtype(kind, jnp.integer)
    ):
        raise TypeError(f"{name}={number!r}: it must be one real number")
    value = jnp.asarray(number, float)
    return jnp.where((value >= 0) & jnp.isfinite(value), value, jnp.nan)


def told_apart(params: PyTree, axis_name: str) -> PyTree:
    """`params` as values that differ between devices.

    `shard_map` sums the gradients of what it knows to be alike on all devices; a device's own
    perturbation needs its own gradient.
    """
    # always true, and the compiler does not know it to be the same everywhere
    here = jax.lax.axis_index(axis_name) >= 0
    return jax.tree.map(lambda leaf: jnp.where(here, leaf, 0).astype(leaf.dtype), params)


def _accumulated(
    micro_batch: Callable[[PyTree, Any], Perturbed], x: PyTree, parts: PyTree, numbers: jax.Array
) -> Perturbed:
    """The mean over micro-batches, one after the other."""

    def add(total: PyTree, one: tuple[PyTree, Any]) -> tuple[PyTree, tuple[Any, Any]]:
        found = micro_batch(*one)
        return jax.tree.map(jnp.add, total, wide(found.gradient)), (found.loss, found.aux)

    # x * 0, not zeros: it differs between devices where x does
    total, (loss, aux) = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, wide(x)), (parts, numbers))
    G = jax.tree.map(lambda t, leaf: (t / numbers.shape[0]).astype(leaf.dtype), total, x)
    return Perturbed(G, _mean(loss), jax.tree.map(_mean, aux))


def _mean(leaf: jax.Array) -> jax.Array:
    """Over micro-batches; of whole numbers the largest, of random keys the first."""
    if _is_key(leaf):
        return leaf[0]
    return (
        jnp.mean(leaf, axis=0)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
        else jnp.max(leaf, axis=0)
    )


def _mean_of_devices(leaf: jax.Array, axis_name: str) -> jax.Array:
    if _is_key(leaf):
        words = jax.random.key_data(leaf)
        first = jax.lax.psum(jnp.where(jax.lax.axis_index(axis_name) == 0, words, 0), axis_name)
        key: jax.Array = jax.random.wrap_key_data(first, impl=jax.random.key_impl(leaf))
        return key
    mean: jax.Array = (
        jax.lax.pmean(leaf, axis_name)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
        else jax.lax.pmax(leaf, axis_name)
    )
    return mean


def _is_key(leaf: jax.Array) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _numbered(key: Any, number: Any) -> Any:
    return None if key is None else jax.random.fold_in(key, number)


def _lengths(batch: PyTree) -> list[int]:
    """The lengths of the leading axes of a batch's arrays, each once."""
    return sorted({jnp.shape(leaf)[0] for leaf in jax.tree.leaves(batch) if jnp.ndim(leaf)})


def _samples(batch: PyTree) -> int:
    lengths = (
        _lengths(batch)
        if all(jnp.ndim(leaf) for leaf in jax.tree.leaves(batch))
        else [0, *_lengths(batch)]
    )
    if len(lengths) != 1 or lengths[0] < 1:
        raise ValueError(
            "the batch must be arrays that share a leading axis, the sample, but the leading axes"
            f" have lengths {lengths or '(no arrays)'}"
        )
    return int(lengths[0])


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
