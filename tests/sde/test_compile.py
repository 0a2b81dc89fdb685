"""Trees as jax functions, against sums in numpy; also trees that no equation has yet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdesam.sde.compile import Samples, evaluate_trees
from sdesam.symbolic import MARK, Tree

N, D = 4, 2


def cubic(x, s):
    return s["a"] @ x + x @ s["H"] @ x / 2 + jnp.einsum("jkl,j,k,l", s["T"], x, x, x) / 6


@pytest.fixture(scope="module")
def derivatives():
    """`(losses, x, g_i, H_i, T_i)` at a point, by hand."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=D)
    a, H, T = (rng.normal(size=(N, *[D] * k)) for k in (1, 2, 3))
    H = (H + H.transpose(0, 2, 1)) / 2
    axes = [(0, 1, 2, 3), (0, 1, 3, 2), (0, 2, 1, 3), (0, 2, 3, 1), (0, 3, 1, 2), (0, 3, 2, 1)]
    T = sum(T.transpose(axis) for axis in axes) / 6
    g = a + H @ x + np.einsum("ijkl,k,l->ij", T, x, x) / 2
    return {"a": a, "H": H, "T": T}, x, g, H + np.einsum("ijkl,l->ijk", T, x), T


def test_sums_of_trees(derivatives):
    data, x, g, H, T = derivatives
    w = np.array([1.0, -2.0, 3.0, -2.0])
    mean_H, mean_T = H.mean(axis=0), T.mean(axis=0)
    i, j, m = Tree(1), Tree(2), Tree(MARK)
    cases = [
        (Tree(1, (i,)), np.einsum("ijk,ik->j", H, g) / N),
        (Tree(1, (j,)), mean_H @ g.mean(axis=0)),
        # a colour whose nodes are apart is a loop over samples
        (Tree(1, (Tree(2, (i,)),)), np.einsum("ijk,kl,il->j", H, mean_H, g) / N),
        # and two such colours are a loop in a loop
        (
            Tree(1, (Tree(2, (Tree(1, (j,)),)),)),
            np.einsum("ijk,nkl,ilm,nm->j", H, H, H, g) / N**2,
        ),
        # a marked sample, its nodes together and apart
        (Tree(MARK, (m,)), np.einsum("i,ijk,ik->j", w, H, g)),
        (Tree(1, (m, m)), np.einsum("i,jkl,ik,il->j", w, mean_T, g, g)),
        (Tree(MARK, (Tree(1, (m,)),)), np.einsum("i,ijk,kl,il->j", w, H, mean_H, g)),
    ]
    with jax.enable_x64(True):
        samples = Samples(cubic, jax.tree.map(jnp.asarray, data), N)
        for tree, wanted in cases:
            found = evaluate_trees(
                (tree,), np.array([2.0]), samples, jnp.asarray(x), mark=jnp.asarray(w)
            )
            np.testing.assert_allclose(found, 2 * wanted, rtol=1e-11, atol=1e-11, err_msg=str(tree))
