"""How many tokens a text has: counted by a tokenizer, or estimated without one. Knows no task.

The estimate is for tokenizers of 30,000 entries and more, on English. On the prose of Python's documentation topics it
is 1 % above SmolLM2's count and 6 % above Gemma 3's; on lists of numbers and odd names it may be off by more.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PIECES = re.compile(r"[^\W\d_]+|\d|\n+|[^\w\s]|_+")
"""What a tokenizer cuts text into before it looks for longer or shorter tokens."""
LETTERS = 9
"""Longest word, in letters, that is counted as one token; of a longer one every so many letters are."""


class Lengths:
    """Counts tokens, of a text by itself: without special tokens, and without what stands around it."""

    def __init__(self, tokenizer: str | None) -> None:
        """tokenizer: what a job's `model.path` may be, or the path of a GGUF file; None: lengths are estimated.

        Loads nothing yet.
        """
        self._name = tokenizer
        self._loaded: PreTrainedTokenizerBase | None = None
        self.part = lru_cache(maxsize=1 << 16)(self.count)
        """As `count`, for texts that come again: a sentence of a document."""

    def count(self, text: str) -> int:
        """Tokens of a text. Raises ValueError, one line, where the tokenizer cannot be loaded."""
        if self._name is None:
            return estimate(text)
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def fingerprint(self) -> str:
        """Names the tokenizer by what it does; empty where lengths are estimated. Raises ValueError as `count` does."""
        if self._name is None:
            return ""
        from workers.models import tokenizer_digest

        return tokenizer_digest(self._tokenizer)

    @property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        if self._loaded is None:
            from workers import models
            from workers.config import ModelConfig

            path, _, file = str(self._name).rpartition("/")
            gguf = file.endswith(".gguf")
            config = ModelConfig(path or ".", gguf=file) if gguf else ModelConfig(str(self._name))
            try:
                self._loaded = models.tokenizer(config)
            except ValueError as error:
                raise ValueError(f"tasks.tokenizer: {error}") from None
        return self._loaded


def estimate(text: str) -> int:
    """About how many tokens a tokenizer with a large vocabulary makes of English text."""
    return sum(1 + (len(piece) - 1) // LETTERS if piece[0].isalpha() else 1 for piece in PIECES.findall(text))
