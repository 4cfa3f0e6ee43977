"""Looks at one prompt while a memory is evolved: what is held of it, generation by generation.

Each look costs one evaluation, is kept in the journal under its generation, and is never taken twice. It decides
nothing: no score, no fitness and no vector depends on it. Knows no pages, no searches and no models.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.messages import first_line
from workers.unit import PolicySpec, SampleRef

if TYPE_CHECKING:  # imports torch
    from workers.reading import Reading

logger = logging.getLogger(__name__)

MOST_TOKENS = 2048
"""Tokens of the prompt that are shown; of a longer one, the first and the last half as many."""
ZERO = ord("0")
"""A number of heads is one character, counted up from this one."""


class Looks:
    """Looks at one prompt, in order.

    read: what a memory holds of a sample (`workers.evaluator.Evaluator.reading`); fact: the journal's
    (`orchestrator.storage.journal.Journal.fact`).

    Attributes:
        prompt: of which prompt, as plain JSON values (`of_prompt`); empty before the first look.
        taken: the looks by generation, as plain JSON values (`of_reading`).
    """

    def __init__(
        self,
        read: Callable[[PolicySpec, SampleRef], Reading],
        fact: Callable[[str, Callable[[], Any]], Any],
        sample: SampleRef,
    ) -> None:
        self._read, self._fact, self._sample = read, fact, sample
        self.prompt: dict[str, Any] = {}
        self.taken: dict[int, dict[str, Any]] = {}

    def take(self, generation: int, memory: PolicySpec) -> None:
        """Looks at what a memory holds, if that was not done before. A look that fails is left out, with a warning:
        it is not worth a search."""
        try:
            self.taken[generation] = self._fact(f"look {generation}", lambda: self._look(memory))
            if not self.prompt:  # a resumed job's
                self.prompt = self._fact("looked at", lambda: of_prompt(self._read(memory, self._sample)))
        except Exception as error:  # whatever a worker raises, the search goes on
            logger.warning("no look at generation %d: %s", generation, first_line(error))

    def _look(self, memory: PolicySpec) -> dict[str, Any]:
        started = time.monotonic()
        reading = self._read(memory, self._sample)
        if not self.prompt:
            self.prompt = self._fact("looked at", lambda: of_prompt(reading))
        return of_reading(reading) | {"seconds": time.monotonic() - started}


def of_prompt(reading: Reading) -> dict[str, Any]:
    """What is the same at every look.

    tokens, kinds and relevant (0 or 1) of the tokens that are shown; cut: how many are shown before those that are
    left out, and left_out: how many these are; length: of the whole prompt; judged: shown tokens before the end of the
    last update; layers, heads.
    """
    shown = _shown(len(reading.tokens))
    layers, heads, length = reading.held.shape
    return {
        "task": reading.sample.task,
        "index": reading.sample.index,
        "length": length,
        "cut": MOST_TOKENS // 2 if len(shown) < length else length,
        "left_out": length - len(shown),
        "judged": int((shown < reading.judged).sum()),
        "layers": layers,
        "heads": heads,
        "tokens": [reading.tokens[i] for i in shown],
        "kinds": [reading.kinds[i] for i in shown],
        "relevant": [int(reading.relevant[i]) for i in shown],
    }


def of_reading(reading: Reading) -> dict[str, Any]:
    """What is held at one look.

    kept: of the whole prompt, and kept_layers: by layer; relevant: the share of layers and heads that hold a token
    which matters to the answer, None if no such tokens are known; held: for each layer a text that has, for each token
    shown, how many heads hold it, as a character counted up from `ZERO`.
    """
    heads = reading.held.sum(axis=1)[:, _shown(len(reading.tokens))]
    relevant = reading.held[:, :, reading.relevant]
    return {
        "kept": float(reading.held.mean()),
        "kept_layers": reading.held.mean(axis=(1, 2)).tolist(),
        "relevant": float(relevant.mean()) if relevant.size else None,
        "held": ["".join(chr(ZERO + count) for count in row) for row in heads.tolist()],
    }


def _shown(length: int) -> np.ndarray:
    """(shown,) positions of the tokens that are shown of a prompt of so many."""
    half = MOST_TOKENS // 2
    return np.arange(length) if length <= 2 * half else np.r_[:half, length - half : length]
