"""Checks of what an :class:`sdesam.optim.Optimizer` is given, each with a sentence that says the
remedy. Shapes and types are looked at while a step is traced, so that a compiled step pays nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax

from sdesam._util.names import unknown
from sdesam.optim.kernel import check_delta
from sdesam.optim.state import State
from sdesam.variants import Gibbs, Gradient, NormEstimate, Sum, Variant, Vector

PyTree = Any
Together = Literal["local", "synchronised"]


def check_rule(variant: Variant) -> None:
    """Refuse a rule whose step needs more than an optimizer can be given."""
    if any(v.scope == "data" and v.at is not None for v in _gradients(variant)):
        raise ValueError(
            f"{variant.name} takes the gradient of the data set at a moved point, and a step is"
            " given that gradient at the parameters alone: run the rule as a sdesam.Chain, or say"
            " 'batch' for 'data' there"
        )


def check_devices(variant: Variant, axis_name: str | None, perturbation: str | None) -> str | None:
    """The axis over which devices perturb together, None if each perturbs alone."""
    if perturbation is not None and perturbation not in get_args(Together):
        raise unknown("perturbation", perturbation, get_args(Together))
    if axis_name is None:
        if perturbation is not None:
            raise ValueError(
                f"perturbation={perturbation!r}: it says what the devices of axis_name do; give"
                " axis_name too"
            )
        return None
    if variant.micro and any(
        v.scope == "batch" and not v.scopes <= {"batch", "data"} for v in _gradients(variant)
    ):
        raise ValueError(
            f"axis_name={axis_name!r}: {variant.name} takes the gradient of the whole mini-batch at"
            " a point of each micro-batch, which no other device holds; leave axis_name out, and"
            " let jit spread the batch over devices"
        )
    if variant.micro or _is_mean_of_samples(variant.direction):
        if perturbation is not None:
            raise ValueError(
                f"perturbation={perturbation!r}: {variant.name} leaves no choice; leave"
                " perturbation out"
            )
        return None
    if perturbation is None:
        raise ValueError(
            f"axis_name={axis_name!r}: say whether the devices perturb alone,"
            " perturbation='local' (micro-batches of the size of a device's batch), or"
            f" together, perturbation='synchronised' ({variant.name} of the whole mini-batch)"
        )
    return axis_name if perturbation == "synchronised" else None


def _gradients(variant: Variant) -> list[Gradient | Gibbs]:
    return [v for v in variant.direction.walk() if isinstance(v, Gradient | Gibbs)]


def _is_mean_of_samples(v: Vector) -> bool:
    """Whether `v` of a mini-batch is the mean of `v` of its parts, as the gradient is at one point
    for all samples; a unit vector is not, nor a gradient at a point that the samples move.
    """
    if isinstance(v, Sum):
        return all(map(_is_mean_of_samples, v.parts))
    if v.scopes <= {"data"}:
        return True
    return isinstance(v, Gradient) and (v.at is None or v.at.scopes <= {"data"})


def known(number: Any) -> Any:
    """A number to be checked now; one that is known only later has a valid one in its place."""
    return 1.0 if callable(number) or isinstance(number, jax.core.Tracer) else number


def schedule(name: str, number: Any, checked: float, least: float = 0.0) -> Callable[[Any], Any]:
    """A number of a step as a function of the steps taken; it must not be below `least`."""
    # three kinds of number: a schedule, a number that jax traces (under vmap or grad over rho), and
    # a number that is known and has been checked already
    if callable(number):
        return lambda count: _seen(name, number(count), least)
    if isinstance(number, jax.core.Tracer):
        seen = _seen(name, number, least)
        return lambda count: seen
    return lambda count: checked


def _seen(name: str, number: Any, least: float) -> Any:
    """A number that compiled code can refuse no more: where it is below `least` or not finite the
    step is NaN, and seen.
    """
    kind = jnp.result_type(number)
    if jnp.shape(number) != () or not (
        jnp.issubdtype(kind, jnp.floating) or jnp.issubdtype(kind, jnp.integer)
    ):
        raise TypeError(f"{name}={number!r}: it must be one real number")
    value = jnp.asarray(number, float)
    return jnp.where((value >= least) & jnp.isfinite(value), value, jnp.nan)


def check_params(params: PyTree, norms: NormEstimate | None) -> None:
    """Refuse parameters that are no floating-point arrays, or too coarse for rw-sam's norms."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        # Python floats are refused outside of jax.jit, where they have no type: optax would give
        # them one, and the state would change its type with the first step
        if not hasattr(leaf, "dtype") or not jnp.issubdtype(leaf.dtype, jnp.floating):
            place = jax.tree_util.keystr(path)
            if type(leaf) is float:
                raise TypeError(
                    f"params{place} is the Python float {leaf!r}: parameters must be floating-point"
                    f" arrays, such as jnp.asarray({leaf!r})"
                )
            what = f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "dtype") else repr(leaf)
            raise TypeError(
                f"params{place} is {what}: parameters must be floating-point arrays; keep other"
                " values out of params, in args or the loss (of an equinox module take"
                " eqx.partition(module, eqx.is_inexact_array), of an nnx one nnx.split(module,"
                " nnx.Param, ...))"
            )
    if not jax.tree.leaves(params):
        raise ValueError("params holds no array: there is nothing to train")
    check_delta(norms, params)


def check_state(
    state: Any, variant: Variant, inner: optax.GradientTransformation, params: PyTree
) -> None:
    """Refuse a state of another variant, of other parameters or of another optax optimizer."""
    if not isinstance(state, State):
        raise TypeError(
            f"state is a {type(state).__name__}: it must be what init(params) or the last step"
            " of this optimizer gave"
        )
    if state.variant != variant.name:
        raise ValueError(
            f"the state is that of {state.variant}, and this is {variant.name}: make one"
            " with init(params)"
        )
    # shapes and types alone: nothing is allocated, however large the optimizer's state is
    try:
        wanted = jax.eval_shape(inner.init, params)
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


def check_whole(gradient: PyTree, variant: Variant, params: PyTree) -> None:
    """Refuse a gradient of the data set that is missing, not needed or of another structure."""
    name = variant.name
    if not variant.needs_full_gradient:
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


def checked_losses(
    out: Any, has_aux: bool, variant: Variant, norms: NormEstimate | None, batch: PyTree
) -> tuple[jax.Array, Any]:
    """What the user's loss returned, as the kernel wants it; looked at while it is traced."""
    if has_aux and not (isinstance(out, tuple) and len(out) == 2):
        raise TypeError(f"has_aux=True: the loss must give (loss, aux), not {type(out).__name__}")
    values, aux = out if has_aux else (out, None)
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
    # the kernel takes the mean of values itself; weights between samples cannot be put into a mean
    # that the loss has taken already
    if variant.weighted:
        if values.ndim == 0:
            raise ValueError(
                f"{variant.name} weighs samples by their gradients: the loss must give one"
                " value for each sample, shape (b,), not their mean"
            )
        sizes = lengths(batch)
        if sizes and values.shape[0] not in sizes:
            raise ValueError(
                f"the loss gives {values.shape[0]} values for a batch of"
                f" {' or '.join(map(str, sizes))} samples: {variant.name} weighs"
                " samples, so it must give one value for each, shape (b,)"
            )
        check_delta(norms, values)
    return values, aux


def lengths(batch: PyTree) -> list[int]:
    """The lengths of the leading axes of a batch's arrays, each once."""
    return sorted({jnp.shape(leaf)[0] for leaf in jax.tree.leaves(batch) if jnp.ndim(leaf)})


def samples(batch: PyTree) -> int:
    """The samples of a batch, or of a data set."""
    sizes = (
        lengths(batch)
        if all(jnp.ndim(leaf) for leaf in jax.tree.leaves(batch))
        else [0, *lengths(batch)]
    )
    if len(sizes) != 1 or sizes[0] < 1:
        raise ValueError(
            "the batch must be arrays that share a leading axis, the sample, but the leading axes"
            f" have lengths {sizes or '(no arrays)'}"
        )
    return int(sizes[0])


def missing_arguments(error: TypeError) -> TypeError | None:
    """The error to raise where an optax optimizer lacks arguments; None for any other error."""
    missing = re.search(r"missing \d+ required keyword-only arguments?: (.*)", str(error))
    if missing is None:
        return None
    names = set(re.findall(r"'(\w+)'", missing[1]))
    if "value_fn" in names:  # the gradient comes with it
        names -= {"grad"}
    more = ", ".join(f"{name}=..." for name in sorted(names))
    return TypeError(
        f"the optax optimizer needs more than a gradient: opt.step(params, state, batch, {more})"
    )
