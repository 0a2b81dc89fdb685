"""Andriushchenko & Flammarion 2022: on diagonal networks USAM balances the two layers, and one
sample at a time does so faster than all at once.

A diagonal network predicts `x . (u v)`, with the product taken entry by entry. A gradient flow
keeps `u_j^2 - v_j^2` for ever; USAM lets it decay, and with it the bias towards sparse solutions
grows.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from sdesam.claims._base import Claim, Outcome, Preset
from sdesam.claims._findings import Findings
from sdesam.optim import Chain
from sdesam.problems import FiniteSum
from sdesam.verify.exact.float64 import directions

_SAMPLES, _WIDTH = 5, 3


def _squared_residual(x: Any, sample: dict[str, Any]) -> Any:
    u, v = x[:_WIDTH], x[_WIDTH:]
    return 0.5 * (jnp.sum(sample["input"] * u * v) - sample["target"]) ** 2


# One entry, one sample, r x = G. A step of USAM is
#
#     u+ = u - eta G' (v + rho G u),   v+ = v - eta G' (u + rho G v)
#
# with G' = G + O(rho) at the perturbed point, and the difference of squares goes to
#
#     u+^2 - v+^2 = (u^2 - v^2) [ (1 - eta rho G G')^2 - eta^2 G'^2 ]
#
# so that 1 - factor = eta (2 rho + eta) G^2 to leading order in both. The eta is that of a step of
# finite size: it is there without perturbation, and no flow has it.
def _rates(problem: FiniteSum, x: np.ndarray, lr: float, rho: float, micro: int) -> np.ndarray:
    """`(1 - E[w+]/w) / lr` for `w_j = u_j^2 - v_j^2` in one step, all batches of one
    micro-batch listed: shape `(width,)`.
    """
    chain = Chain("usam", problem, lr=lr, rho=rho, batch=micro, replace=False)
    batches = (
        np.arange(_SAMPLES).reshape(-1, 1, 1)
        if micro == 1
        else np.arange(_SAMPLES).reshape(1, 1, -1)
    )
    after = x - lr * directions(chain, x[None], batches)[:, 0]
    w = x[:_WIDTH] ** 2 - x[_WIDTH:] ** 2
    left = np.mean(after[:, :_WIDTH] ** 2 - after[:, _WIDTH:] ** 2, axis=0)
    return np.asarray((1 - left / w) / lr)


def _slopes(problem: FiniteSum, x: np.ndarray, micro: int) -> tuple[np.ndarray, np.ndarray]:
    """The rate of decay per unit of rho and per unit of lr, as both go to 0, by extrapolation."""
    small, none = 1e-3, 1e-14
    by_rho, by_lr = [], []
    for size in (small, 2 * small, 4 * small):
        finite = _rates(problem, x, size, none, micro)
        by_lr.append(finite / size)
        by_rho.append((_rates(problem, x, size, size, micro) - finite) / size)
    # a + b h + c h^2 at h, 2 h and 4 h: (8 - 6 + 1) / 3 = 1, 8 - 12 + 4 = 0 and 8 - 24 + 16 = 0
    each = np.array([8, -6, 1]) / 3
    return np.tensordot(each, by_rho, axes=1), np.tensordot(each, by_lr, axes=1)


def _run(preset: Preset, seed: int) -> Outcome:
    found = Findings(1e-4, "extrapolation in rho and lr from 1e-3, 2e-3 and 4e-3: about 1e-6")
    ratios = []
    for draw in range(seed, seed + (1 if preset == "quick" else 5)):
        rng = np.random.default_rng(draw)
        inputs = np.float32(rng.normal(size=(_SAMPLES, _WIDTH)))
        targets = np.float32(rng.normal(size=_SAMPLES))
        problem = FiniteSum(
            _squared_residual,
            {"input": inputs, "target": targets},
            np.ones(2 * _WIDTH),
            name="a diagonal network",
        )
        x = rng.uniform(0.5, 1.5, size=2 * _WIDTH) * rng.choice([-1, 1], size=2 * _WIDTH)
        residual = inputs @ (x[:_WIDTH] * x[_WIDTH:]) - targets
        each = residual[:, None] * inputs.astype(float)
        whole, mean = each.mean(axis=0) ** 2, np.mean(each**2, axis=0)
        ratios.append(mean.sum() / whole.sum())
        for name, micro, right, other in (
            ("all samples", _SAMPLES, whole, mean),
            ("one sample", 1, mean, whole),
        ):
            by_rho, by_lr = _slopes(problem, x, micro)
            label = f"{name}, draw {draw}"
            found.agree(f"decay of u_j^2 - v_j^2 per unit of rho: {label}", 2 * right, by_rho)
            found.agree(f"and per unit of lr, by finite steps: {label}", right, by_lr)
            found.broken(f"the other mean of squares: {label}", 2 * other, by_rho)
            found.broken(f"4 for 2, the public code's one sample: {label}", 4 * right, by_rho)
            found.broken(f"1 for 2: {label}", right, by_rho)
            found.broken(f"growth for decay: {label}", -2 * right, by_rho)
            found.broken(f"no decay by finite steps: {label}", 0 * right, by_lr)
    return found.outcome(
        "To leading order in rho, with a perturbation of rho times the gradient of the sample. The"
        " public code perturbs one sample by 2 rho r_k x_k v and the full batch by rho: with it the"
        " rate of one sample is twice as large, and a comparison at one rho favours it by that"
        " factor, too. Finite steps decay at 2 rho + lr in place of 2 rho. Here one sample decays"
        f" {ratios[0]:.3g} times as fast as all (trace).",
        {"mean of squares over square of mean": ratios},
    )


CLAIMS = (
    Claim(
        id="AF-diag",
        title="on diagonal networks USAM balances layers, one sample at a time faster",
        statement=(
            r"\beta = u \odot v,\ L = \tfrac{1}{2n}\textstyle\sum_k r_k^2:\quad |u_j^2 - v_j^2|"
            r" \text{ decays at } 2\rho\,(\partial_{\beta_j} L)^2 \text{ (full batch)},\quad 2\rho"
            r"\,\tfrac1n \textstyle\sum_k r_k^2 x_{kj}^2 \text{ (one sample)}"
        ),
        source="Andriushchenko & Flammarion 2022, arXiv 2206.06232, diagonal networks",
        prediction="the rate per unit of rho in one step, and lr for 2 rho by finite steps",
        recorded="confirmed",
        seconds=1,
        run=_run,
    ),
)
