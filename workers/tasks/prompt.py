"""A sample as tokens, which are computed once and kept in Redis. Knows no model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase as Tokenizer

from workers.config import PromptConfig
from workers.tasks import Sample
from workers.tasks.video import VideoSample
from workers.unit import SampleRef


@dataclass(frozen=True)
class Prompt:
    """A tokenised sample."""

    ref: SampleRef
    """Which sample it is."""
    ids: np.ndarray
    """(tokens,) int32, the prompt."""
    reference: np.ndarray
    """(answer tokens,) int32, the first answer as it continues the prompt; where further questions follow, these and
    their answers, too."""
    relevant: np.ndarray
    """(relevant,) int32, positions of the tokens that an oracle keeps."""
    answers: tuple[str, ...]
    """All answers that count as right."""
    metric: str
    """A name in `workers.tasks.metrics`, or `OWN_METRIC`."""
    max_new_tokens: int
    """Most tokens of an answer."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer."""
    classes: tuple[str, ...] = ()
    """Names of all classes, for `classification_score`."""
    drops_breaks: bool = True
    """Whether line breaks in front of an answer go before a line break ends it."""
    scored: tuple[tuple[int, int], ...] = ()
    """Where the answers stand in `reference` (first, behind the last), one for each question; empty: it is one."""
    context: int = 0
    """Tokens in front of the question; 0: not known."""

    @property
    def tokens(self) -> int:
        """Length of the prompt."""
        return len(self.ids)

    def pack(self) -> np.ndarray:
        """One int32 array: lengths, then ids, reference, relevant positions and the rest as UTF-8 bytes."""
        grading = [self.metric, self.max_new_tokens, self.stop, self.classes, self.drops_breaks]
        grading += [self.scored, self.context]
        rest = json.dumps([self.ref, self.answers, *grading]).encode()
        parts = [self.ids, self.reference, self.relevant, np.frombuffer(rest, np.uint8)]
        return np.concatenate([[len(part) for part in parts], *parts]).astype(np.int32)

    @classmethod
    def unpack(cls, packed: np.ndarray) -> Prompt:
        """Undoes `pack`."""
        ids, reference, relevant, rest = np.split(packed[4:], np.cumsum(packed[:3]))
        *plain, scored, context = json.loads(rest.astype(np.uint8).tobytes())
        ref, answers, metric, limit, stop, classes, drops = plain
        texts = tuple(answers), metric, limit, tuple(stop), tuple(classes)
        spans = tuple((first, last) for first, last in scored)
        return cls(SampleRef(*ref), ids, reference, relevant, *texts, drops, spans, context)


def tokenise(sample: Sample, tokenizer: Tokenizer, config: PromptConfig | None = None) -> Prompt:
    """Tokenises a sample; the tokenizer's offsets turn character spans into token positions.

    Raises ValueError if the tokenizer lacks the chat template or the opening token that `config` asks for.
    """
    config = config or PromptConfig()
    text, shift, templated = sample.prompt, 0, config.chat_template and sample.chat
    if templated:
        text, shift = _templated(sample.prompt, tokenizer, isinstance(sample, VideoSample))
    asked = shift + len(sample.prompt.rstrip() if templated else sample.prompt)  # where the prompt ends in the text
    if sample.prefix:
        text += _after(text, sample.prefix) if templated else f"\n{sample.prefix}"
    # A template writes the special tokens itself.
    special = config.bos == "auto" and not templated
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=special)
    ids = np.array(encoded["input_ids"], np.int32)
    offsets = np.array(encoded["offset_mapping"]).reshape(-1, 2)
    if config.bos != "auto":
        ids, offsets = _opened(ids, offsets, tokenizer, config.bos)
    relevant = np.zeros(len(ids), dtype=bool)
    starts, ends = offsets.T
    body = shift + len(sample.prompt) - len(sample.prompt.lstrip()) if templated else 0
    for first, last in sample.relevant:
        relevant |= (starts < last + shift) & (ends > max(first + shift, body))
    if sample.relevant and sample.prefix:  # what stands around the prompt opens the text, and asks
        relevant |= (ends <= body) | (ends > asked)
    kept = middle_truncated(len(ids), config.max_tokens)
    # A token that reaches into the question belongs to it; tokens that no text stands for (0, 0) open the prompt.
    context = int((ends[kept] > shift + sample.context).argmax()) if sample.context else 0
    completion = sample.answers[0] if templated and not sample.prefix else sample.completion
    reference = tokenizer(completion, add_special_tokens=False)["input_ids"]
    first = len(reference)
    scored = [(0, first)] if sample.turns else []
    for asking, answering in _turns(sample, tokenizer, templated):
        reference += tokenizer(asking, add_special_tokens=False)["input_ids"]
        answered = tokenizer(answering, add_special_tokens=False)["input_ids"]
        scored.append((len(reference), len(reference) + len(answered)))
        reference += answered
    return Prompt(
        SampleRef(sample.task, sample.split, sample.index),
        ids[kept],
        np.array(reference, np.int32),
        np.flatnonzero(relevant[kept]).astype(np.int32),
        sample.answers,
        sample.metric,
        sample.max_new_tokens or first,
        sample.stop,
        sample.classes,
        sample.drops_breaks,
        tuple(scored),
        context,
    )


def middle_truncated(tokens: int, most: int | None) -> np.ndarray:
    """(kept,) int64, indices of the tokens that stay: all, or the first and the last `most // 2`, as LongBench cuts.

    LongBench turns both halves into text and tokenises that again, which may give more tokens than asked for; here
    they stay as they are.
    """
    places = np.arange(tokens)
    if most is None or tokens <= most:
        return places
    return np.concatenate([places[: most // 2], places[-(most // 2) :]])


def cut(text: str, stop: tuple[str, ...], drops_breaks: bool = True) -> str:
    """An answer up to its first stop text.

    drops_breaks: whether line breaks in front of it are no end, which LongBench drops first; `lm_eval` does not.
    """
    if drops_breaks and "\n" in stop:
        text = text.lstrip("\n")
    return text[: min((at for s in stop if (at := text.find(s)) >= 0), default=len(text))]


def _templated(prompt: str, tokenizer: Tokenizer, parts: bool = False) -> tuple[str, int]:
    """The prompt as a user's turn, up to where the model answers, and by how much the prompt's characters have moved.

    parts: whether the template takes a turn as a list of parts, as templates of models for pictures do.
    """
    if not tokenizer.chat_template:
        raise ValueError("prompt.chat_template is on, but the model's tokenizer has no chat template: turn it off")
    turn: dict[str, Any] = {"role": "user", "content": [{"type": "text", "text": prompt}] if parts else prompt}
    text = str(tokenizer.apply_chat_template([turn], tokenize=False, add_generation_prompt=True))
    # many templates strip what they are given
    return text, text.find(prompt.strip()) - (len(prompt) - len(prompt.lstrip()))


def _after(text: str, prefix: str) -> str:
    """How an answer begins behind what a template has written."""
    return prefix if text[-1:].isspace() else f" {prefix}"


def _turns(sample: Sample, tokenizer: Tokenizer, templated: bool) -> Iterator[tuple[str, str]]:
    """For each further question, what stands between the last answer and the next, and that answer."""
    if not templated:
        for turn in sample.turns:
            yield f"\n\n{turn.question}\n{turn.prefix}", f" {turn.answer}"
        return
    said = f"{sample.prefix} {sample.answers[0]}".strip()
    talk = [{"role": "user", "content": sample.prompt}, {"role": "assistant", "content": said}]
    for turn in sample.turns:
        before = str(tokenizer.apply_chat_template(talk[:-1], tokenize=False, add_generation_prompt=True))
        talk.append({"role": "user", "content": turn.question})
        text = str(tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True))
        yield text[text.index(said, len(before)) + len(said) :] + _after(text, turn.prefix), f" {turn.answer}"
        said = f"{turn.prefix} {turn.answer}"
        talk.append({"role": "assistant", "content": said})


def _opened(ids: np.ndarray, offsets: np.ndarray, tokenizer: Tokenizer, bos: str) -> tuple[np.ndarray, np.ndarray]:
    """ids (tokens,) and offsets (tokens, 2) with or without the opening token, whatever a template wrote."""
    opening = tokenizer.bos_token_id
    if opening is None:
        if bos == "always":
            raise ValueError("prompt.bos is always, but the model's tokenizer has no token that opens a text: set auto")
        return ids, offsets
    opened = len(ids) > 0 and ids[0] == opening
    if bos == "always" and not opened:
        return np.append(np.int32(opening), ids).astype(np.int32), np.vstack([[0, 0], offsets])
    return (ids[1:], offsets[1:]) if bos == "never" and opened else (ids, offsets)
