"""What a node of a tree stands for: its *colour*, an integer, and every meaning that one can have.

| colour | the node belongs to |
| --- | --- |
| 1, 2, ... | a sample of the data set; nodes of one colour share it, and are averaged over it |
| `MARK` | the marked sample: the argument `i` of a function `h(i)`, left open |
| `WHOLE` | in a norm, the mean gradient of the whole data set |
| `ONE` | nothing: the tree is the number 1, which factors multiply |
| `LOOP` | nothing: one of two leaves that are a unit vector `e_k`; the tree is summed over `k` |
| `MICRO` | a micro-batch; nodes are derivatives of its mean loss `f_I` |
| `MARKED_MICRO` | a micro-batch that contains the marked sample |
| `probe(slot, size)` | a random weight on every sample, in place of a colour of `size` nodes |
| `visited(k)` | the one sample at which a loop over the data set is |

The algebra knows the first five. The others are given to trees when they are evaluated
(`sdesam.sde.compile`). An example, the tree `[1 [2 [1]]]`, which is `mean_i H_i Hbar g_i`:

    1   H_i      the root; its sample i ...
    |
    2   Hbar     ... the mean over the data set ...
    |
    1   g_i      ... and the same i again

Colours are integers because trees are compared and sorted, and because jax sorts keys.
"""

from __future__ import annotations

MARK = 0
WHOLE = -1
ONE = -2
LOOP = -3
MEAN = 10**6
"""No node: the name of the weights `1/n`, of every colour that has no weights of its own."""
MICRO = -(10**6)
MARKED_MICRO = MICRO - 1
PROBES = -100
"""Probes have the colours below this number."""
_VISITED = -1000


def probe(slot: int, size: int) -> int:
    """The colour of a probe for `size` nodes; a tree has one for each `slot`.

    >>> probe(0, 2), probe(1, 3)
    (-102, -113)
    """
    return PROBES - (10 * slot + size)


def is_sample(colour: int) -> bool:
    """Whether the algebra takes a node of this colour for a derivative of the loss of a sample, or
    of a micro-batch, that has a name of its own.
    """
    return colour >= MARK


def visited(number: int) -> int:
    """The colour of the sample that a loop is at; `number` tells nested loops apart."""
    return _VISITED - number


def of_micro_batch(colour: int) -> bool:
    """Whether a node of this colour belongs to a micro-batch."""
    return colour in (MICRO, MARKED_MICRO)


def of_data_set(colour: int) -> bool:
    """Whether a node of this colour belongs to a sample that is summed over: no probe, and none
    that a loop is at.
    """
    return colour >= MARK
