"""Coloured trees as jax functions: nested directional derivatives, one reverse pass, no matrices.

A node's value is `D^(k+1) f_c [v_1, ..., v_k] = grad_y ( d/dv_1 ... d/dv_k f_c(y) )`: a reverse
pass over nested forward derivatives along vectors that are already known. Because that is linear in
the loss and in each vector, a whole combination of trees is ONE gradient of a weighted sum over
samples, and trees that differ in their last child share a derivative. What a colour needs:

* a colour with one node is a plain mean, the marked colour a weighted mean: part of one pass over
  the data;
* a colour whose nodes hang together is per-sample work inside the same pass, O(n);
* a colour whose nodes are apart, as in `mean_j Tbar[g_j, g_j]`, costs O(n^2) exactly. `sampled`
  replaces it by one probe, a random weight on every sample, which is unbiased (`docs/theory.md`,
  section 3);
* a colour with a norm is per-micro-batch work in a pass over micro-batches, listed or drawn: an
  average over these is as good as linear.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from sdesam._util.precision import like, of_sums, wide
from sdesam.autodiff.outer_products import dense_layers, factors, loss_along
from sdesam.optim.kernel import inverse_norm, weighted_gradient
from sdesam.problems import fold_samples
from sdesam.problems.means import computes_in_half, samples_without_vectors, summed_gradient
from sdesam.symbolic import Tree
from sdesam.symbolic.roles import (
    LOOP,
    MARK,
    MARKED_MICRO,
    MEAN,
    MICRO,
    PROBES,
    of_data_set,
    of_micro_batch,
    probe,
    visited,
)
from sdesam.symbolic.trees import Factor, relabel, rootings
from sdesam.variants import NormEstimate

PyTree = Any
Loss = Callable[[PyTree], jax.Array]
Combination = list[tuple[Any, Tree]]
"""Pairs of a (possibly traced) number and a tree."""
Field = Callable[[PyTree], PyTree]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["indices", "probabilities", "keys"],
    meta_fields=["drawn"],
)
@dataclass(frozen=True)
class MicroBatches:
    """Micro-batches to average over.

    Args:
        indices: of their samples, shape `(q, m)`.
        probabilities: their weights, shape `(q,)`, of sum 1.
        keys: for the random directions of norm estimates, shape `(q,)`; None where there are none.
        drawn: whether they are a sample, of independent micro-batches, and not all of them.
    """

    indices: jax.Array | np.ndarray
    probabilities: jax.Array | np.ndarray
    keys: jax.Array | None = None
    drawn: bool = False


class Norms(NamedTuple):
    """What the norms of gradients in a tree are.

    Args:
        eps: of `sqrt(|g|^2 + eps^2)`.
        lam: of the weights of a weighted node.
        estimate: how a weighted node estimates the norms of samples.
        own: the rule's own numbers, by name.
    """

    eps: Any = 0.0
    lam: Any = 0.0
    estimate: NormEstimate | None = None
    own: Mapping[str, Any] = {}


class Samples(NamedTuple):
    """The finite sum that trees are evaluated on.

    Args:
        loss: `(params, sample) -> scalar`.
        data: pytree, leading axis `n`.
        chunk: samples per chunk of per-sample work.
    """

    loss: Callable[[Any, Any], jax.Array]
    data: PyTree
    chunk: int

    @property
    def first(self) -> PyTree:
        """A sample, for its shapes."""
        return jax.tree.map(lambda leaf: leaf[0], self.data)


_PLAIN = Norms()
_FEW_DRAWN = 8
"""So many drawn micro-batches are looked at one by one."""


class _Item(NamedTuple):
    """What a colour stands for, a sample or a micro-batch."""

    loss: Loss
    along: Callable[[PyTree, Any], jax.Array] | None = None
    """`(y, t) -> f_i(y + t g_i)`, `g_i` at the point of the evaluator, for a sample whose loss has
    dense layers.
    """
    weighted: Field | None = None
    """The weighted gradient of a micro-batch."""


class _Direction(NamedTuple):
    """A vector `dense + own * g_i`; a part that is None is zero."""

    dense: PyTree | None
    own: Any = None


def evaluate_trees(
    trees: tuple[Tree, ...],
    coefficients: jax.Array | np.ndarray,
    samples: Samples,
    x: PyTree,
    *,
    mark: jax.Array | None = None,
    key: jax.Array | None = None,
    micro_batches: MicroBatches | None = None,
    norms: Norms = _PLAIN,
) -> PyTree:
    """`sum_t coefficients[t] * trees[t]` at `x`.

    Args:
        trees: rooted trees; with a marked colour only if `mark` is given.
        coefficients: one number per tree, shape `(len(trees),)`.
        samples: the losses that the nodes are derivatives of.
        x: the parameters.
        mark: weights `w_i`, shape `(n,)`, of sum 0: the marked colour `i` is summed with them.
        key: for probes in trees without a marked colour; None for the exact expectation.
        micro_batches: what a colour with a norm is averaged over; needed where one occurs.
        norms: what the norms are.

    Returns:
        A vector with the structure of `x`.
    """
    n = jax.tree.leaves(samples.data)[0].shape[0]
    dtype = of_sums(jnp.result_type(*jax.tree.leaves(x)))
    weights: dict[Any, jax.Array] = {MEAN: jnp.full(n, 1 / n, dtype)}
    if mark is not None:
        weights[MARK] = mark.astype(dtype)
    if micro_batches is not None:
        weights[MICRO] = jnp.asarray(micro_batches.probabilities, dtype)
        if mark is not None:
            # sum_i w_i E[. | i in I] = E[W_I .], W_I = (n/m) sum_(k in I) w_k, of mean 0: a
            # covariance, estimated as one, because a sample's own mean of W would let the large
            # common part of all micro-batches in
            W = weights[MARK][micro_batches.indices].mean(axis=1) * n
            q = micro_batches.indices.shape[0]
            W = (W - jnp.mean(W)) * (q / (q - 1)) if micro_batches.drawn else W
            weights[MARKED_MICRO] = weights[MICRO] * W
    evaluator = _Evaluator(
        samples,
        x,
        weights,
        dense_layers(samples.loss, x, samples.first),
        computes_in_half(samples.loss, x, samples.data),
        micro_batches,
        norms,
    )
    pairs: Combination = [
        (jnp.asarray(coefficients[k], dtype), _placed(tree)) for k, tree in enumerate(trees)
    ]
    if key is not None:
        # the noise is linear in its marked sample, and so its trees are exact
        marked = [
            any(node.colour in (MARK, MARKED_MICRO) for node in tree.nodes()) for _, tree in pairs
        ]
        drift = _sample_probes(
            evaluator, [pair for pair, noise in zip(pairs, marked, strict=True) if not noise], key
        )
        pairs = drift + [pair for pair, noise in zip(pairs, marked, strict=True) if noise]
    loops = [(c, tree) for c, tree in pairs if _has_loop(tree)]
    if not loops:
        return evaluator.vector(pairs)
    rest = [(c, tree) for c, tree in pairs if not _has_loop(tree)]
    total = _loops(evaluator, loops, key)
    return _add(total, evaluator.vector(rest)) if rest else total


def _has_loop(tree: Tree) -> bool:
    return any(node.colour == LOOP for node in tree.nodes())


# A loop is a sum over a basis: [1 [e] [e]] is sum_k Tbar[e_k, e_k], the gradient of tr Hbar. With
# random signs z in place of the basis it is E Tbar[z, z], because E z_k z_l is 1 if k = l and else
# 0. One draw costs what one vector costs; the basis costs as many passes as there are parameters.


def _loops(evaluator: _Evaluator, pairs: Combination, key: jax.Array | None) -> PyTree:
    """The value of trees with a loop: exactly, or along one random direction drawn from `key`."""

    def along(vector: PyTree) -> PyTree:
        # what is computed inside of a loop of jax must not be kept outside of it
        inner = replace(
            evaluator,
            loop=vector,
            gradients=dict(evaluator.gradients),
            numbers=dict(evaluator.numbers),
        )
        return inner.vector(pairs)

    flat, rebuild = ravel_pytree(evaluator.x)
    if key is not None:
        signs = jax.random.rademacher(jax.random.fold_in(key, 2), flat.shape, flat.dtype)
        return along(rebuild(signs))

    def add(k: jax.Array, total: PyTree) -> PyTree:
        return _add(total, along(rebuild(jnp.zeros_like(flat).at[k].set(1))))

    return jax.lax.fori_loop(0, flat.size, add, jax.tree.map(jnp.zeros_like, evaluator.x))


def _placed(tree: Tree) -> Tree:
    """`tree` with names for its micro-batch's colour, and each factor on the topmost node of that
    colour, if it has one.
    """
    whole = tree.micro_batches
    if not whole:
        return tree
    (colour,) = whole  # no tree of an order that is available has two
    new = MARKED_MICRO if colour == MARK else MICRO
    tree = relabel(tree, lambda c: new if c == colour else c)
    own = tuple(
        factor for factor in tree.factors if any(node.colour == new for node in factor.tree.nodes())
    )
    rest = tuple(factor for factor in tree.factors if factor not in own)

    def put(node: Tree) -> tuple[Tree, bool]:
        if node.colour == new:
            return node._replace(factors=own), True
        for k, child in enumerate(node.children):
            placed, done = put(child)
            if done:
                return (
                    node._replace(children=(*node.children[:k], placed, *node.children[k + 1 :])),
                    True,
                )
        return node, False

    placed, done = put(tree._replace(factors=()))
    rest = rest if done else tree.factors
    return placed._replace(factors=placed.factors + rest)


def _sample_probes(evaluator: _Evaluator, pairs: Combination, key: jax.Array) -> Combination:
    """Every colour whose nodes are apart replaced by a probe; the same probes serve all trees."""
    result = []
    for coefficient, tree in pairs:
        for slot, colour in enumerate(c for c in _apart(tree) if c != MICRO):
            size = sum(node.colour == colour for node in tree.nodes())
            new = probe(slot, size)
            if new not in evaluator.weights:
                evaluator.weights[new] = _probe(
                    jax.random.fold_in(key, PROBES - new), size, evaluator.weights[MEAN]
                )
            tree = _recolour(tree, colour, new)
        result.append((coefficient, tree))
    return result


def _probe(key: jax.Array, size: int, mean: jax.Array) -> jax.Array:
    """Random weights `e_j / n^(1/size)` with `E prod_k e_(j_k) = 1` where all `size` indices agree
    and 0 elsewhere.

    Two indices: Rademacher. Three: the two-point law on the golden ratio and minus its inverse, of
    mean 0, variance 1 and third moment 1. No tree of an order that is available needs more.
    """
    if size == 2:
        signs = jax.random.rademacher(key, mean.shape, mean.dtype)
        return signs * jnp.sqrt(mean)
    if size == 3:
        golden = (1 + 5**0.5) / 2
        up = jax.random.bernoulli(key, 1 / (golden**2 + 1), mean.shape)
        return jnp.where(up, golden, -1 / golden).astype(mean.dtype) * jnp.cbrt(mean)
    raise NotImplementedError(f"no probe is known for a colour of {size} nodes that are apart")


# A worked example. Two samples with losses f_i(x) = h_i (x - a_i)^2 / 2 of one parameter,
# h = (1, 2) and a = (0, 1), at x = 3. The gradients are g = (3, 4), the Hessians H = (1, 2). What
# happens to
#
#     2 [1 [1]] + 5 [1 [2]]    =    2 mean_i H_i g_i + 5 Hbar gbar    =    2 * 5.5 + 5 * 1.5 * 3.5
#
# 1. `vector` looks for colours whose nodes are apart. There are none: the nodes of colour 1 in the
#    first tree hang together, and each colour of the second tree has one node.
# 2. `_together` sees that both trees have children and that no plain gradient is asked for.
# 3. `_pass` groups both under the weights 1/n, and `_scalar` sorts the children of each root:
#    * of [1 [1]] the child has the root's colour. It is the item's own gradient, formed inside the
#      loop over samples: v_i = g_i = (3, 4).
#    * of [1 [2]] the child has another colour. It is the same vector for every sample, so
#      `_children` computes it now, before the loop: gbar = 3.5, an evaluation of the tree [2].
#    Neither tree has a child beside that one, so they are of one family and share a derivative,
#    along the vector 2 g_i + 5 gbar = (23.5, 25.5).
# 4. The loop sums a number that depends on y, with y = x in the end:
#
#        s(y) = sum_i (1/2) d/dv f_i(y) = (1/2) (1 (y - 0) 23.5 + 2 (y - 1) 25.5)
#
# 5. One reverse pass gives its derivative, (1/2) (23.5 + 51) = 37.25. This is the value of both
#    trees: 11 + 26.25. No Hessian was formed, and there was one pass for any number of trees.
#
# Why a derivative of a scalar, and not a product of matrices? `D^(k+1) f [v_1, ..., v_k]` has one
# free index, and the reverse pass gives it for the price of a few evaluations of f, whatever the
# number of parameters. Forward derivatives along known vectors are as cheap.


@dataclass
class _Evaluator:
    """Combinations of trees at one point. `weights` says with which weights the samples of a colour
    are summed.

    Where losses compute in half precision, weights of a sum are `size` times as large inside it:
    float16 has no numbers below `6e-8`.
    """

    samples: Samples
    x: PyTree
    weights: dict[Any, jax.Array]
    layers: dict[int, Any]
    half: bool = False
    micro_batches: MicroBatches | None = None
    norms: Norms = _PLAIN
    gradients: dict[Any, PyTree] = field(default_factory=dict)
    numbers: dict[Factor, jax.Array] = field(default_factory=dict)
    alone: bool = False
    """Whether there is one micro-batch, so that its nodes need not hang together."""
    loop: PyTree | None = None
    """What the unit vectors of a loop are at present."""

    def vector(self, pairs: Combination) -> PyTree:
        """The value of a combination whose colours are shared with nothing outside it."""
        pairs = [self._without_numbers(c, tree) for c, tree in pairs]
        units = [c for c, tree in pairs if tree.colour == LOOP]
        if units:
            pairs = [(c, tree) for c, tree in pairs if tree.colour != LOOP]
            straight = _scale(self.loop, sum(units))
            return _add(straight, self.vector(pairs)) if pairs else straight
        split = [self._split(tree) for _, tree in pairs]
        kinds = [MICRO if MICRO in colours else bool(colours) for colours in split]
        together, apart, batches = (
            [pair for pair, other in zip(pairs, kinds, strict=True) if other is kind]
            for kind in (False, True, MICRO)
        )
        total = [self._together(together)] if together else []
        total += [self._enumerate(apart)] if apart else []
        total += [self._one_by_one(batches)] if batches else []
        return reduce(_add, total)

    def _split(self, tree: Tree) -> list[int]:
        """The colours whose nodes are apart, where that matters."""
        return [c for c in _apart(tree) if not (self.alone and c == MICRO)]

    def _without_numbers(self, c: Any, tree: Tree) -> tuple[Any, Tree]:
        """Factors that depend on no micro-batch, made part of the coefficient."""
        kept = []
        for factor in tree.factors:
            of_item = any(of_micro_batch(node.colour) for node in factor.tree.nodes())
            if of_item and not self.alone:
                kept.append(factor)
            else:
                if factor not in self.numbers:
                    self.numbers[factor] = self._number(factor)
                c = c * self.numbers[factor]
        return c, tree._replace(factors=tuple(kept))

    def _number(self, factor: Factor) -> jax.Array:
        if factor.norm:
            mean = self._gradient(MEAN)
            followed = self._gradient(MICRO) if factor.tree.colour == MICRO else mean
            if factor.mix:
                a, s = (c.value(self.norms.own) for c in factor.mix)
                followed = _add(_scale(followed, a), _scale(mean, s))
            return self._power_of_norm(followed, factor)
        # hung from a leaf it is the product of a mean gradient and a vector
        leaf = next(rooted for rooted in rootings(factor.tree) if len(rooted.children) == 1)
        alike = any(node.colour == leaf.colour for node in leaf.children[0].nodes())
        if alike and leaf.colour != MICRO:
            raise NotImplementedError(f"no way is known to evaluate the scalar {factor.tree}")
        followed = self._gradient(MICRO if leaf.colour == MICRO else MEAN)
        value = _dot(followed, self.vector([(1, leaf.children[0])]))
        return _power(value, factor.power)

    def _power_of_norm(self, v: PyTree, factor: Factor) -> jax.Array:
        assert factor.power < 0, "norms only divide"
        inverse: jax.Array = inverse_norm(v, self.norms.eps) ** -factor.power
        return inverse

    def _together(self, pairs: Combination) -> PyTree:
        """Trees of which each colour hangs together: plain gradients are computed once and kept,
        the rest is one pass.
        """
        grown = [(c, tree) for c, tree in pairs if tree.children]
        wanted = (
            {self._weighting(node) for _, tree in grown for node in tree.nodes()}
            | {MEAN}
            | set(self.gradients)
        )
        plain: dict[Any, list[Any]] = defaultdict(list)
        passed = list(grown)
        for c, tree in pairs:
            if not tree.children and tree.factors:
                passed.append((c, tree))
            elif not tree.children:
                # a gradient that nothing else needs goes along with the trees of samples, for less
                # than a pass of its own
                if grown and self._weighting(tree) not in wanted:
                    passed.append((c, tree))
                else:
                    plain[self._weighting(tree)].append(c)
        total = [_scale(self._gradient(which), sum(many)) for which, many in plain.items()]
        for of_samples in (True, False):
            some = [(c, tree) for c, tree in passed if of_micro_batch(tree.colour) != of_samples]
            total += [self._pass(some, of_samples)] if some else []
        return reduce(_add, total)

    def _gradient(self, which: Any) -> PyTree:
        if which not in self.gradients:
            self.gradients[which] = self._pass(
                [(1, Tree(1 if which == MEAN else which))], of_samples=not of_micro_batch(which)
            )
        return self.gradients[which]

    def _weighting(self, tree: Tree) -> Any:
        return tree.colour if tree.colour in self.weights else MEAN

    def _enumerate(self, pairs: Combination) -> PyTree:
        """Trees with a colour whose nodes are apart: that colour runs over all samples, one at a
        time.
        """
        n = self.weights[MEAN].shape[0]
        self._gradient(MEAN)  # shared by every sample
        bound = visited(len(self.weights))
        by_weight: dict[Any, Combination] = defaultdict(list)
        for c, tree in pairs:
            colour = _apart(tree)[0]
            by_weight[MARK if colour == MARK else MEAN].append((c, _recolour(tree, colour, bound)))

        def some(part: Any) -> PyTree:
            indices, outer = part

            def one(index: jax.Array, weight: dict[Any, jax.Array]) -> PyTree:
                only = jnp.zeros(n, self.weights[MEAN].dtype).at[index].set(1)
                inner = replace(
                    self,
                    weights={**self.weights, bound: only},
                    gradients=dict(self.gradients),
                    numbers=dict(self.numbers),
                )
                weighted = [
                    (c * weight[which], tree)
                    for which, group in by_weight.items()
                    for c, tree in group
                ]
                return inner.vector(weighted)

            return jax.tree.map(lambda a: a.sum(axis=0), wide(jax.vmap(one)(indices, outer)))

        return self._folded(some, jnp.arange(n), by_weight, min(n, 16))

    def _one_by_one(self, pairs: Combination) -> PyTree:
        """Trees with nodes of a micro-batch that do not hang together, as in `Tbar[g_I, g_I]`: one
        micro-batch at a time. Of drawn ones a few will do, because they are alike.
        """
        batches = self.micro_batches
        assert batches is not None, "trees with norms need micro-batches"
        self._gradient(MEAN)  # shared by every micro-batch
        some = min(batches.indices.shape[0], _FEW_DRAWN) if batches.drawn else None
        keys = None if batches.keys is None else batches.keys[:some]
        weights = jnp.asarray(self.weights[MICRO][:some])
        weights = weights / jnp.sum(weights)

        def one(total: PyTree, part: Any) -> tuple[PyTree, None]:
            indices, key, weight = part
            alone = MicroBatches(indices[None], jnp.ones(1), None if key is None else key[None])
            inner = replace(
                self,
                micro_batches=alone,
                weights={**self.weights, MICRO: jnp.ones(1, weight.dtype)},
                gradients=dict(self.gradients),
                numbers=dict(self.numbers),
                alone=True,
            )
            return _add(total, _scale(inner.vector(pairs), weight)), None

        zero = jax.tree.map(jnp.zeros_like, self.x)
        parts = (jnp.asarray(batches.indices)[:some], keys, weights)
        return jax.lax.scan(one, zero, parts)[0]

    def _folded(
        self, some: Callable[[Any], PyTree], items: PyTree, by_weight: Mapping[Any, Any], chunk: int
    ) -> PyTree:
        """`some` of chunks of items and their weights, summed, in the precision of `x`."""
        size = jax.tree.leaves(items)[0].shape[0] if self.half else 1
        weights = {
            which: self.weights[which] * size if self.half else self.weights[which]
            for which in by_weight
        }
        total = fold_samples(some, (items, weights), chunk)
        return like(jax.tree.map(lambda a: a / size, total) if self.half else total, self.x)

    def _pass(self, pairs: Combination, of_samples: bool) -> PyTree:
        """One reverse pass over samples, or over micro-batches, for trees whose colours hang
        together.
        """
        by_weight: dict[Any, Combination] = defaultdict(list)
        for c, tree in pairs:
            by_weight[self._weighting(tree)].append((c, tree))
        # vectors from other passes are computed here, before the loop over samples starts
        scalar = self._scalar(by_weight)
        if of_samples:
            everything = self.samples.data
            vectors = self.half or any(_own_vectors(tree) for _, tree in pairs)
            chunk = (
                self.samples.chunk
                if vectors
                else samples_without_vectors(self.layers, self.samples.chunk, self.x)
            )
        else:
            assert self.micro_batches is not None, "trees with norms need micro-batches"
            everything = (self.micro_batches.indices, self.micro_batches.keys)
            chunk = max(1, self.samples.chunk // self.micro_batches.indices.shape[1])

        def one(y: PyTree, part: Any) -> jax.Array:
            description, weight = part
            total: jax.Array = scalar(
                self._sample(description) if of_samples else self._micro_batch(*description),
                weight,
                y,
            )
            return total

        return self._folded(
            lambda part: summed_gradient(one, self.x, part, self.half), everything, by_weight, chunk
        )

    def _sample(self, sample: PyTree) -> _Item:
        def along(y: PyTree, t: Any) -> jax.Array:
            own = factors(self.samples.loss, self.layers, self.x, sample)
            return loss_along(
                self.samples.loss,
                self.layers,
                y,
                t,
                sample,
                jax.tree.map(lambda leaf: leaf[None], own),
            )

        return _Item(lambda y: self.samples.loss(y, sample), along if self.layers else None)

    def _micro_batch(self, indices: jax.Array, key: jax.Array | None) -> _Item:
        samples = jax.tree.map(lambda leaf: leaf[indices], self.samples.data)

        def losses(y: PyTree) -> tuple[jax.Array, None]:
            return jax.vmap(self.samples.loss, (None, 0))(y, samples), None

        def weighted(y: PyTree) -> PyTree:
            estimate = self.norms.estimate
            assert estimate is not None, "weighted nodes need an estimate of norms"
            return weighted_gradient(estimate, losses, y, self.norms.lam, key)[0]

        return _Item(lambda y: jnp.mean(losses(y)[0]), weighted=weighted)

    def _scalar(
        self, groups: Mapping[Any, Combination]
    ) -> Callable[[_Item, Mapping[Any, Any], PyTree], Any]:
        """`(item, weight, y) -> sum_g weight[g] sum_t c_t d/dv_1 ... d/dv_k f(y)`, of which the
        gradient in `y` has the item at the root.
        """
        plain = {
            which: [c for c, tree in pairs if not (tree.children or tree.factors)]
            for which, pairs in groups.items()
        }
        derivatives: list[tuple[Any, Any, list[Any], list[Any]]] = []
        for which, pairs in groups.items():
            families: dict[Any, list[tuple[Any, Tree, bool]]] = defaultdict(list)
            for c, tree in pairs:
                if not tree.children and tree.factors:
                    derivatives.append(
                        (which, c, [], [self._own_factor(factor) for factor in tree.factors])
                    )
                elif tree.children:
                    # children of the root's colour are vectors of the item too; they come first, so
                    # that families are large
                    children = sorted(
                        (child.colour != tree.colour, child) for child in tree.children
                    )
                    shared, (other, last) = tuple(children[:-1]), children[-1]
                    families[shared, tree.factors].append((c, last, not other))
            for (shared, own_factors), lasts in families.items():
                vectors = [
                    *(self._children([(1, child, not other)]) for other, child in shared),
                    self._children(lasts),
                ]
                derivatives.append(
                    (which, 1, vectors, [self._own_factor(factor) for factor in own_factors])
                )

        def scalar(item: _Item, weight: Mapping[Any, Any], y: PyTree) -> Any:
            total, loss = 0, None
            for which, c, vectors, own_factors in derivatives:
                loss, value = _derivative(item, [vector(item) for vector in vectors], y)
                product = reduce(jnp.multiply, (factor(item) for factor in own_factors), value)
                total += weight[which] * (product if isinstance(c, int) else c * product)
            if any(plain.values()):
                total += sum(weight[which] * c for which, many in plain.items() for c in many) * (
                    item.loss(y) if loss is None else loss
                )
            return total

        return scalar

    # Whether a branch is the item's own decides when it is computed. What is not the item's is
    # known before the loop and computed once; what is the item's is a function that the loop calls
    # with each sample. So `_children` gives a function `item -> vector`, and not a vector.

    def _children(self, branches: list[tuple[Any, Tree, bool]]) -> Callable[[_Item], _Direction]:
        """`item -> sum of branches` `(coefficient, tree, whether its root is the item)`."""
        known = [(c, tree) for c, tree, own in branches if not own]
        fixed = [self.vector(known)] if known else []
        plain = [(c, tree) for c, tree, own in branches if own and not tree.weighted]
        leaves, grown = (
            [c for c, tree in plain if not tree.children],
            [(c, tree) for c, tree in plain if tree.children],
        )
        weighted = [
            (
                c,
                [
                    self._children([(1, child, child.colour == tree.colour)])
                    for child in tree.children
                ],
            )
            for c, tree, _ in branches
            if tree.weighted
        ]

        of_all, of_grown = self._scalar({None: plain}), self._scalar({None: grown})

        def vector(item: _Item) -> _Direction:
            total = list(fixed)
            for c, along in weighted:
                assert item.weighted is not None
                total.append(
                    _scale(_directional(item.weighted, [v(item).dense for v in along])(self.x), c)
                )
            formed, scalar = (plain, of_all) if item.along is None else (grown, of_grown)
            if formed:
                total.append(jax.grad(partial(scalar, item, {None: 1}))(self.x))
            dense = reduce(_add, total) if total else None
            return _Direction(dense, sum(leaves) if leaves and item.along is not None else None)

        return vector

    def _own_factor(self, factor: Factor) -> Callable[[_Item], jax.Array]:
        """A factor that depends on the item, at `x`: it multiplies a derivative and is not
        differentiated.
        """
        if factor.norm:
            leaf = self._children([(1, factor.tree, True)])
            if factor.mix:
                return self._mixed_norm(leaf, factor)
            return lambda item: self._power_of_norm(leaf(item).dense, factor)
        tree = max(
            (rooted for rooted in rootings(factor.tree) if of_micro_batch(rooted.colour)),
            key=lambda rooted: (rooted.weighted, len(rooted.children)),
        )
        vectors = [
            self._children([(1, child, child.colour == tree.colour)]) for child in tree.children
        ]

        def value(item: _Item) -> jax.Array:
            along = [vector(item).dense for vector in vectors]
            if tree.weighted:
                assert item.weighted is not None
                return _power(_dot(item.weighted(self.x), along[0]), factor.power)
            contracted: jax.Array = _directional(item.loss, along)(self.x)
            return _power(contracted, factor.power)

        return value

    def _mixed_norm(
        self, leaf: Callable[[_Item], _Direction], factor: Factor
    ) -> Callable[[_Item], jax.Array]:
        """A power of the norm of `a g + s gbar`, with `g` of the item."""
        a, s = (c.value(self.norms.own) for c in factor.mix)
        mean = _scale(self._gradient(MEAN), s)

        def value(item: _Item) -> jax.Array:
            followed = _add(_scale(leaf(item).dense, a), mean)
            return self._power_of_norm(followed, factor)

        return value


# An example. In [1 [2 [1]]] = mean_i H_i Hbar g_i, colour 1 starts twice: at the root, which has
# nothing above it, and at the leaf, which has a node of colour 2 above it. So its nodes are apart:
# the vector Hbar g_i is another for every sample, and costs a pass over the data for each. In
# [1 [1 [2]]] = mean_i H_i H_i gbar colour 1 starts once, and one pass over the data does.
#
# A probe makes such a tree cheap. With independent signs e_i, E e_i e_j is 1 if i = j and else 0:
#
#     mean_i H_i Hbar g_i = E[(1/n) sum_i e_i H_i Hbar sum_j e_j g_j]
#
# Inside the expectation both sums are passes over the data with weights, and each weighted sum is
# a colour of its own.


def _apart(tree: Tree) -> list[int]:
    """The colours, probes excepted, whose nodes do not hang together."""
    # how often a colour starts below a node of another colour
    entries: dict[int, int] = defaultdict(int)

    def visit(node: Tree, above: int | None) -> None:
        if of_data_set(node.colour) and node.colour != above:
            entries[node.colour] += 1
        for child in node.children:
            visit(child, node.colour)

    visit(tree, None)
    found = [colour for colour, count in entries.items() if count > 1]
    return [*found, MICRO] if _micro_batch_apart(tree) else found


def _micro_batch_apart(tree: Tree) -> bool:
    """Whether a micro-batch's nodes do not hang together, in the tree or in one of its factors, or
    whether it occurs in factors alone.
    """

    def pieces(node: Tree, above: int | None) -> int:
        here = int(node.colour == MICRO != above)
        return here + sum(pieces(child, node.colour) for child in node.children)

    def factors(node: Tree) -> Iterator[Factor]:
        yield from node.factors
        for child in node.children:
            yield from factors(child)

    main = pieces(tree._replace(factors=()), None)
    in_factors = [pieces(factor.tree, None) for factor in factors(tree)]
    return max([main, *in_factors]) > 1 or (main == 0 and any(in_factors))


def forms_vectors(tree: Tree, sampled: bool) -> bool:
    """Whether vectors of many samples, or of micro-batches, are there at once, where the loss has
    dense layers.
    """
    return bool(
        tree.factors or tree.micro_batches or _own_vectors(tree) or (_apart(tree) and not sampled)
    )


def _own_vectors(tree: Tree) -> bool:
    """Whether it contracts a derivative of a sample with a vector of this sample other than its
    gradient.
    """
    return any(
        (child.colour == tree.colour and bool(child.children)) or _own_vectors(child)
        for child in tree.children
    )


def _recolour(tree: Tree, old: int, new: int) -> Tree:
    return relabel(tree, lambda colour: new if colour == old else colour)


def _derivative(item: _Item, vectors: list[_Direction], y: PyTree) -> tuple[jax.Array, jax.Array]:
    """`f(y)` and `d/dv_1 ... d/dv_k f(y)`, of one evaluation: they share the pass back."""
    by_own = any(v.own is not None for v in vectors)
    assert not by_own or item.along is not None

    def fn(y: PyTree, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        loss = item.along(y, t) if by_own else item.loss(y)  # type: ignore[misc]
        return loss, loss

    for v in vectors:
        fn = partial(_along_both, fn, v)
    return fn(y, jnp.zeros((), jnp.result_type(*jax.tree.leaves(y))))


def _along_both(fn: Any, v: _Direction, y: PyTree, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first of what `fn` gives, and the derivative of the second."""
    if v.own is None:
        (loss, _), (_, slope) = jax.jvp(lambda y: fn(y, t), (y,), (v.dense,))
        return loss, slope
    own = jnp.asarray(v.own, t.dtype)
    if v.dense is None:
        (loss, _), (_, slope) = jax.jvp(lambda t: fn(y, t), (t,), (own,))
    else:
        (loss, _), (_, slope) = jax.jvp(fn, (y, t), (v.dense, own))
    return loss, slope


def _directional(fn: Any, vectors: list[PyTree]) -> Any:
    """The derivative of `fn` along each of `vectors`."""
    for v in vectors:
        fn = partial(_along, fn, v)
    return fn


def _along(fn: Field, v: PyTree, y: PyTree) -> PyTree:
    return jax.jvp(fn, (y,), (v,))[1]


def _add(a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, a, b)


def _dot(a: PyTree, b: PyTree) -> jax.Array:
    total: jax.Array = reduce(
        jnp.add, jax.tree.leaves(jax.tree.map(lambda u, v: jnp.sum(u * v), wide(a), wide(b)))
    )
    return total


def _power(value: jax.Array, power: int) -> jax.Array:
    result: jax.Array = wide(value) ** power
    return result


def _scale(tree: PyTree, factor: Any) -> PyTree:
    # a gradient keeps the precision of its parameters, whatever that of the coefficients
    return jax.tree.map(lambda leaf: (factor * leaf).astype(leaf.dtype), tree)
