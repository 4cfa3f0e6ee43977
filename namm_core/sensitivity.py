"""How a token's own features move its own score: d score_i / d e_i, exactly, for all tokens at once.

A score may also depend on the features of other tokens. Here they are held fixed, so that every token has its own
derivative. Knows nothing of models or tasks.
"""

from __future__ import annotations

from torch import Tensor

from namm_core.namm import Namm
from namm_core.protocols import Entries, State


def own_derivatives(namm: Namm, state: State, view: Entries) -> Tensor:
    """(rows, kv_heads, keys, features) derivative of each token's score by its own embedding; columns as in `view`.

    Units: score per unit of the embedding (spectrogram features in standard deviations, ages as sines and cosines);
    padding gets numbers without meaning. Raises ValueError for a population.
    """
    if namm.rows != 1:
        raise ValueError(f"sensitivity is that of one NAMM, not of {namm.rows}")
    newest_first = namm.embeddings(state, view).detach().flip(2)
    return namm.scorer.derivatives(namm.weights_at(view), newest_first).flip(2)
