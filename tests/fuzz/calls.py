"""Calls of a memory on a tiny model: any shapes, masks and types, in any order. Right is what stock transformers says.

With the policy that keeps everything, every call that is accepted gives the logits of the model without a memory; with
the others, finite ones, and the tokens fed are counted right.
"""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import torch

from namm_core import MemoryCache
from namm_core.policies import H2O, Full, SnapKV, Streaming
from tests.fuzz.running import refused
from tests.namm_core.matrix import CACHE, namm
from tests.tiny_models import tiny_llama

POLICIES = {
    "full": lambda: Full(16),
    "streaming": lambda: Streaming(16, 16),
    "h2o": lambda: H2O(16, 16),
    "snapkv": lambda: SnapKV(16, 16),
    "padded": lambda: namm("padded"),
    "ragged": lambda: namm("ragged"),
}


class Inputs:
    """Short lives of a memory."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self._model = tiny_llama()
        self._file = folder / "memory.safetensors"

    def one(self, rng: random.Random) -> bool:
        """See `running.Kind`."""
        name = rng.choice([*POLICIES, "full", "full"])
        cache = MemoryCache(self._model, POLICIES[name]())
        life = _Life(rng, self._model, cache, name == "full", self._file)
        try:
            for _ in range(rng.randint(1, 7)):
                life.step()
        finally:
            for each in life.open:
                each.detach()
        assert self._model.config._attn_implementation != "namm" and "generate" not in self._model.__dict__
        return life.accepted > life.refused


class _Life:
    """One memory, and what it was fed."""

    def __init__(self, rng: random.Random, model: Any, cache: MemoryCache, whole: bool, file: Path) -> None:
        self.rng, self.model, self.cache, self.whole, self.file = rng, model, cache, whole, file
        self.open = [cache]
        self.ids: torch.Tensor | None = None
        """(rows, columns) of all that was fed."""
        self.mask: torch.Tensor | None = None
        self.accepted = self.refused = 0

    def step(self) -> None:
        """One call."""
        actions = [self.feed] * 5 + [self.generate, self.fork, self.select, self.reset, self.store, self.attach]
        try:
            self.rng.choice(actions)()
            self.accepted += 1
        except ValueError as error:
            self.refused += 1
            refused(error)

    def feed(self) -> None:
        """Tokens, padded or not, of the right type or another."""
        rows = self.rng.randint(1, 3) if self.ids is None or self.rng.random() < 0.1 else len(self.ids)
        length = self.rng.choice([1, 1, 2, 5, 15, 16, 17, 40])
        ids = torch.randint(1, 97, (rows, length), generator=torch.Generator().manual_seed(self.rng.getrandbits(30)))
        whole = ids if self.ids is None or len(self.ids) != rows else torch.cat([self.ids, ids], 1)
        before = self.mask if self.mask is not None and len(self.mask) == rows else torch.ones_like(whole)[:, :-length]
        new = torch.ones_like(ids)
        if self.rng.random() < 0.3:
            for row in range(rows):
                pad = self.rng.randrange(length)
                new[row] = (
                    torch.arange(length) >= pad if self.rng.random() < 0.8 else torch.arange(length) < length - pad
                )
        mask = torch.cat([before[:, : whole.shape[1] - length], new], 1)
        given: torch.Tensor | None = mask if self.rng.random() < 0.6 or not bool(mask.all()) else None
        odd = self.rng.random() < 0.15
        if odd and given is not None:
            given = self.rng.choice([mask[:, :-1], mask[..., None], mask[:0], mask.flip(1), mask.float(), mask.bool()])
        fed = (
            self.rng.choice([ids[:, :0], ids.int(), ids + 1000, ids.float(), ids[0]])
            if self.rng.random() < 0.08
            else ids
        )
        extra = {} if given is None else {"attention_mask": given}
        if self.rng.random() < 0.05:
            extra |= self.rng.choice([{"use_cache": False}, {"output_attentions": True}])
        logits = self._called(fed, extra)
        assert logits.isfinite().all()
        if fed is not ids or (given is not None and not torch.equal(given.bool().long(), mask)):
            self.ids, self.mask, self.whole = None, None, False  # accepted, and another text than this one knows of
            return
        if self.whole:
            self._compare(whole, mask, logits, length, new)
        self.ids, self.mask = whole, mask

    def _called(self, ids: torch.Tensor, extra: dict[str, Any]) -> torch.Tensor:
        """The logits. An error that the model has by itself is one of the call, not of the memory."""
        with torch.no_grad():
            try:
                return self.model(ids, **extra, **{CACHE: self.cache}).logits
            except ValueError:
                raise
            except Exception as error:
                for each in self.open:
                    each.detach()
                self.ids = self.mask = None
                try:
                    self.model(ids, **extra)
                except Exception:
                    raise ValueError(f"stock refuses it, too: {type(error).__name__}") from None
                raise

    def _compare(self, ids: torch.Tensor, mask: torch.Tensor, logits: torch.Tensor, length: int, new: Any) -> None:
        with torch.no_grad():
            twin = tiny_llama()
            right = twin(ids, attention_mask=mask).logits[:, -length:]
        real = new.bool()
        assert torch.allclose(logits[real], right[real], atol=2e-3, rtol=1e-3), "other logits than without a memory"

    def generate(self) -> None:
        """A few tokens."""
        prompt = self.ids if self.ids is not None else torch.randint(1, 97, (1, 20))
        if self.ids is not None and self.rng.random() < 0.7:
            prompt = torch.cat([self.ids, self.ids[:, :1]], 1)
        mask = None if self.mask is None else torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], 1)
        options = {} if mask is None or mask.shape != prompt.shape else {"attention_mask": mask}
        try:
            out = self.model.generate(prompt, max_new_tokens=3, do_sample=False, **options, **{CACHE: self.cache})
        except ValueError:
            raise
        except Exception:
            if self.cache.attach():  # it had left the model, and what it held made no sense to the stock attention
                raise ValueError("the memory had left its model") from None
            raise
        assert out.shape == (len(prompt), prompt.shape[1] + 3)
        if options and not bool(mask.all()):
            self.whole = False  # `generate` counts places without padding, a call with it
        self.ids = out[:, :-1]
        self.mask = (
            torch.ones_like(self.ids)
            if not options
            else torch.cat([options["attention_mask"], torch.ones_like(out[:, -2:])], 1)
        )

    def fork(self) -> None:
        """On with a copy."""
        self.cache = self.rng.choice([copy.copy, copy.deepcopy])(self.cache)
        self.open.append(self.cache)

    def select(self) -> None:
        """Rows moved, repeated or dropped."""
        if self.ids is None:
            return
        rows = len(self.ids)
        if self.rng.random() < 0.3:
            chosen = torch.arange(rows).repeat_interleave(2)
            self.cache.batch_repeat_interleave(2)
        else:
            chosen = torch.tensor(self.rng.choices(range(rows), k=self.rng.randint(1, 3)))
            self.cache.batch_select_indices(chosen)
        self.ids, self.mask = self.ids[chosen], None if self.mask is None else self.mask[chosen]

    def reset(self) -> None:
        """Another text."""
        self.cache.reset()
        self.ids = self.mask = None

    def store(self) -> None:
        """Stored and read again."""
        self.cache.save(self.file)
        self.cache = MemoryCache.load(self.file, self.model, self.cache.policy)
        self.open.append(self.cache)

    def attach(self) -> None:
        """Left and taken up again, in any order."""
        for each in self.rng.sample(self.open, self.rng.randint(0, len(self.open))):
            each.detach()
        if self.rng.random() < 0.9:
            self.cache.attach()
