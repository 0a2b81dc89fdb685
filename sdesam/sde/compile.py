"""Coloured trees as jax functions: nested directional derivatives, one reverse pass, no matrices.

A node's value is `D^(k+1) f_c [v_1, ..., v_k] = grad_y ( d/dv_1 ... d/dv_k f_c(y) )`: a reverse pass over nested forward
derivatives along vectors that are already known. Because that is linear in the loss and in each vector, a whole combination of trees
is ONE gradient of a weighted sum over samples, and trees that differ in their last child share a derivative. What a colour needs:

* a colour with one node is a plain mean, the marked colour a weighted mean: part of one pass over the data;
* a colour whose nodes hang together is per-sample work inside the same pass, O(n);
* a colour whose nodes are apart, as in `mean_j Tbar[g_j, g_j]`, costs O(n^2) exactly. `sampled` replaces it by one probe, a random
  weight on every sample, which is unbiased (`docs/theory.md`, section 3).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdesam.problems import fold_samples
from sdesam.symbolic import MARK, Tree
from sdesam.symbolic.trees import relabel

PyTree = Any
Loss = Callable[[PyTree], jax.Array]
Combination = list[tuple[Any, Tree]]
"""Pairs of a (possibly traced) number and a tree."""

_MEAN = 10**6
"""The weights `1/n` of every colour that has none of its own; like colours and probes an integer, because jax sorts keys."""


def combine(
    trees: tuple[Tree, ...],
    coefficients: jax.Array | np.ndarray,
    sample_loss: Callable[[Any, Any], jax.Array],
    chunk: int,
    data: PyTree,
    x: PyTree,
    mark: jax.Array | None = None,
    key: jax.Array | None = None,
) -> PyTree:
    """`sum_t coefficients[t] * trees[t]` at `x`.

    Args:
        trees: rooted trees; with a marked colour only if `mark` is given.
        coefficients: one number per tree, shape `(len(trees),)`.
        sample_loss: `(params, sample) -> scalar`.
        chunk: samples per chunk of per-sample work.
        data: pytree, leading axis `n`.
        x: the parameters.
        mark: weights `w_i`, shape `(n,)`: the marked colour `i` is summed with them.
        key: for probes; None for the exact expectation.

    Returns:
        A vector with the structure of `x`.
    """
    n = jax.tree.leaves(data)[0].shape[0]
    dtype = jnp.result_type(*jax.tree.leaves(x))
    weights: dict[Any, jax.Array] = {_MEAN: jnp.full(n, 1 / n, dtype)}
    if mark is not None:
        weights[MARK] = mark.astype(dtype)
    evaluator = _Evaluator(sample_loss, chunk, data, x, weights)
    pairs: Combination = [(jnp.asarray(coefficients[k], dtype), tree) for k, tree in enumerate(trees)]
    return evaluator.vector(_sample_probes(evaluator, pairs, key) if key is not None else pairs)


def _sample_probes(evaluator: _Evaluator, pairs: Combination, key: jax.Array) -> Combination:
    """Every colour whose nodes are apart replaced by a probe; the same probes serve all trees."""
    result = []
    for coefficient, tree in pairs:
        for slot, colour in enumerate(_apart(tree)):
            size = sum(node.colour == colour for node in tree.nodes())
            probe = -(10 * slot + size)
            if probe not in evaluator.weights:
                evaluator.weights[probe] = _probe(jax.random.fold_in(key, -probe), size, evaluator.weights[_MEAN])
            tree = _recolour(tree, colour, probe)
        result.append((coefficient, tree))
    return result


def _probe(key: jax.Array, size: int, mean: jax.Array) -> jax.Array:
    """Random weights `e_j / n^(1/size)` with `E prod_k e_(j_k) = 1` where all `size` indices agree and 0 elsewhere.

    Two indices: Rademacher. Three: the two-point law on the golden ratio and minus its inverse, of mean 0, variance 1 and third
    moment 1. No tree of an order that is available needs more.
    """
    if size == 2:
        signs = jax.random.rademacher(key, mean.shape, mean.dtype)
        return signs * jnp.sqrt(mean)
    if size == 3:
        golden = (1 + 5**0.5) / 2
        up = jax.random.bernoulli(key, 1 / (golden**2 + 1), mean.shape)
        return jnp.where(up, golden, -1 / golden).astype(mean.dtype) * jnp.cbrt(mean)
    raise NotImplementedError(f"no probe is known for a colour of {size} nodes that are apart")


@dataclass
class _Evaluator:
    """Combinations of trees at one point. `weights` says with which weights the samples of a colour are summed."""

    sample_loss: Callable[[Any, Any], jax.Array]
    chunk: int
    data: PyTree
    x: PyTree
    weights: dict[Any, jax.Array]
    gradients: dict[Any, PyTree] = field(default_factory=dict)

    def vector(self, pairs: Combination) -> PyTree:
        """The value of a combination whose colours are shared with nothing outside it."""
        apart = [(c, tree) for c, tree in pairs if _apart(tree)]
        together = [(c, tree) for c, tree in pairs if not _apart(tree)]
        total = [self._together(together)] if together else []
        total += [self._enumerate(apart)] if apart else []
        return reduce(_add, total)

    def _together(self, pairs: Combination) -> PyTree:
        """Trees of which each colour hangs together: plain gradients are computed once and kept, the rest is one pass."""
        plain: dict[Any, list[Any]] = defaultdict(list)
        for c, tree in pairs:
            if not tree.children:
                plain[self._weighting(tree)].append(c)
        total = [_scale(self._gradient(which), sum(many)) for which, many in plain.items()]
        grown = [(c, tree) for c, tree in pairs if tree.children]
        total += [self._pass(grown)] if grown else []
        return reduce(_add, total)

    def _gradient(self, which: Any) -> PyTree:
        if which not in self.gradients:
            self.gradients[which] = self._pass([(1, Tree(1 if which == _MEAN else which))])
        return self.gradients[which]

    def _weighting(self, tree: Tree) -> Any:
        return tree.colour if tree.colour in self.weights else _MEAN

    def _enumerate(self, pairs: Combination) -> PyTree:
        """Trees with a colour whose nodes are apart: that colour runs over all samples, one at a time."""
        n = self.weights[_MEAN].shape[0]
        self._gradient(_MEAN)  # shared by every sample
        bound = -1000 - len(self.weights)
        by_weight: dict[Any, Combination] = defaultdict(list)
        for c, tree in pairs:
            colour = _apart(tree)[0]
            by_weight[MARK if colour == MARK else _MEAN].append((c, _recolour(tree, colour, bound)))

        def some(part: Any) -> PyTree:
            indices, outer = part

            def one(index: jax.Array, weight: dict[Any, jax.Array]) -> PyTree:
                only = jnp.zeros(n, self.weights[_MEAN].dtype).at[index].set(1)
                inner = replace(self, weights={**self.weights, bound: only}, gradients=dict(self.gradients))
                weighted = [(c * weight[which], tree) for which, group in by_weight.items() for c, tree in group]
                return inner.vector(weighted)

            return jax.tree.map(lambda a: a.sum(axis=0), jax.vmap(one)(indices, outer))

        return fold_samples(some, (jnp.arange(n), {which: self.weights[which] for which in by_weight}), min(n, 16))

    def _pass(self, pairs: Combination) -> PyTree:
        """One reverse pass over the data for trees whose colours hang together."""
        by_weight: dict[Any, Combination] = defaultdict(list)
        for c, tree in pairs:
            by_weight[self._weighting(tree)].append((c, tree))
        # vectors from other passes are computed here, before the loop over samples starts
        scalars = {which: self._scalar(group) for which, group in by_weight.items()}

        def chunk_gradient(part: Any) -> PyTree:
            samples, weights = part

            def weighted(y: PyTree) -> jax.Array:
                def one(sample: PyTree, weight: dict[Any, jax.Array]) -> jax.Array:
                    loss = partial(_loss_of, self.sample_loss, sample)
                    terms = [weight[which] * scalar(loss, y) for which, scalar in scalars.items()]
                    total: jax.Array = reduce(jnp.add, terms)
                    return total

                return jnp.sum(jax.vmap(one)(samples, weights))

            return jax.grad(weighted)(self.x)

        return fold_samples(chunk_gradient, (self.data, {which: self.weights[which] for which in scalars}), self.chunk)

    def _scalar(self, pairs: Combination) -> Callable[[Loss, PyTree], Any]:
        """`(f_i, y) -> sum_t c_t d/dv_1 ... d/dv_k f_i(y)`, whose gradient in `y` is the combination with sample `i` at the root."""
        plain = [c for c, tree in pairs if not tree.children]
        families: dict[Any, list[tuple[Any, Tree, bool]]] = defaultdict(list)
        for c, tree in pairs:
            if tree.children:
                # children of the root's colour are vectors of sample i too; they come first, so that families are large
                children = sorted((child.colour != tree.colour, child) for child in tree.children)
                shared, (other, last) = tuple(children[:-1]), children[-1]
                families[shared].append((c, last, not other))
        derivatives = [
            [*(self._children([(1, child, not other)]) for other, child in shared), self._children(lasts)] for shared, lasts in families.items()
        ]

        def scalar(loss: Loss, y: PyTree) -> Any:
            total = sum(plain) * loss(y) if plain else 0
            for vectors in derivatives:
                total += _directional(loss, [vector(loss) for vector in vectors])(y)
            return total

        return scalar

    def _children(self, branches: list[tuple[Any, Tree, bool]]) -> Callable[[Loss], PyTree]:
        """`f_i -> sum of branches` `(coefficient, tree, whether its root is sample i)`."""
        known = [(c, tree) for c, tree, own in branches if not own]
        fixed = [self.vector(known)] if known else []
        own = self._scalar([(c, tree) for c, tree, own in branches if own])
        moving = any(own for _, _, own in branches)

        def vector(loss: Loss) -> PyTree:
            return reduce(_add, fixed + ([jax.grad(partial(own, loss))(self.x)] if moving else []))

        return vector


def _apart(tree: Tree) -> list[int]:
    """The colours, probes excepted, whose nodes do not hang together."""
    entries: dict[int, int] = defaultdict(int)  # how often a colour starts below a node of another colour

    def visit(node: Tree, above: int | None) -> None:
        if node.colour >= MARK and node.colour != above:
            entries[node.colour] += 1
        for child in node.children:
            visit(child, node.colour)

    visit(tree, None)
    return [colour for colour, count in entries.items() if count > 1]


def _recolour(tree: Tree, old: int, new: int) -> Tree:
    return relabel(tree, lambda colour: new if colour == old else colour)


def _loss_of(sample_loss: Callable[[Any, Any], jax.Array], sample: PyTree, y: PyTree) -> jax.Array:
    return sample_loss(y, sample)


def _directional(fn: Loss, vectors: list[PyTree]) -> Loss:
    """The derivative of `fn` along each of `vectors`."""
    for v in vectors:
        fn = partial(_along, fn, v)
    return fn


def _along(fn: Loss, v: PyTree, y: PyTree) -> jax.Array:
    derivative: jax.Array = jax.jvp(fn, (y,), (v,))[1]
    return derivative


def _add(a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, a, b)


def _scale(tree: PyTree, factor: Any) -> PyTree:
    # a gradient keeps the precision of its parameters, whatever that of the coefficients
    return jax.tree.map(lambda leaf: (factor * leaf).astype(leaf.dtype), tree)
