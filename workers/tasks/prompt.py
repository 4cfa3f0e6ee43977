"""A sample as tokens: what is computed once and kept in Redis. Knows no model."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase as Tokenizer

from workers.tasks import Sample


@dataclass(frozen=True)
class Prompt:
    """A tokenised sample."""

    ids: np.ndarray
    """(tokens,) int32, the prompt."""
    reference: np.ndarray
    """(answer tokens,) int32, the first answer as it continues the prompt."""
    relevant: np.ndarray
    """(relevant,) int32, positions of the tokens that an oracle keeps."""
    answers: tuple[str, ...]
    """All answers that count as right."""
    metric: str
    """A name in `workers.tasks.metrics`."""
    max_new_tokens: int
    """Most tokens of an answer."""

    def pack(self) -> np.ndarray:
        """One int32 array: lengths, then ids, reference, relevant positions and the rest as UTF-8 bytes."""
        rest = json.dumps([self.answers, self.metric, self.max_new_tokens]).encode()
        parts = [self.ids, self.reference, self.relevant, np.frombuffer(rest, np.uint8)]
        return np.concatenate([[len(part) for part in parts], *parts]).astype(np.int32)

    @classmethod
    def unpack(cls, packed: np.ndarray) -> Prompt:
        """Undoes `pack`."""
        ids, reference, relevant, rest = np.split(packed[4:], np.cumsum(packed[:3]))
        answers, metric, limit = json.loads(rest.astype(np.uint8).tobytes())
        return cls(ids, reference, relevant, tuple(answers), metric, limit)


def tokenise(sample: Sample, tokenizer: Tokenizer) -> Prompt:
    """Tokenises a sample; character spans become token positions by the tokenizer's offsets."""
    encoded = tokenizer(sample.prompt, return_offsets_mapping=True)
    relevant = np.zeros(len(encoded["input_ids"]), dtype=bool)
    starts, ends = np.array(encoded["offset_mapping"]).T
    for start, end in sample.relevant:
        relevant |= (starts < end) & (ends > start)
    reference = tokenizer(sample.completion, add_special_tokens=False)["input_ids"]
    return Prompt(
        np.array(encoded["input_ids"], np.int32),
        np.array(reference, np.int32),
        np.flatnonzero(relevant).astype(np.int32),
        sample.answers,
        sample.metric,
        sample.max_new_tokens or len(reference),
    )
