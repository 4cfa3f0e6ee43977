"""Reads the recorded runs: attention in, every intermediate and the kept sets out, as plain arrays.

Knows the recordings' layout (their index files describe every tensor); computes nothing but the attention of
the one recording that stores queries and keys in its place.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from tests.namm_core.reference import Statistics

COMPONENTS = [
    "component_b1_n64_raw_0",
    "component_b1_n64_raw_1",
    "component_b1_n64_norm_0",
    "component_b1_n64_norm_1",
    "component_b1_n512_norm",
]
RUNS = ["e2e_norm_A", "e2e_norm_B", "e2e_norm_C", "e2e_raw_A", "e2e_raw_C"]


def recorded_statistics(tensors: dict[str, np.ndarray]) -> Statistics | None:
    """The frozen statistics of a recording, in float64; None where it ran without."""
    if "norm_mean" not in tensors:
        return None
    mean, var = (tensors[key].astype(np.float64) for key in ("norm_mean", "norm_var"))
    return Statistics(mean, var, int(tensors["norm_num"][0]))


@dataclass(frozen=True)
class Update:
    """One recorded update; arrays are (batch, KV heads, ...) with K cache entries as columns."""

    attention: np.ndarray  # (batch, heads, new, K), averaged over the query heads of each group
    positions: np.ndarray  # (batch, heads, K)
    magnitudes: np.ndarray  # (batch, heads, frames, columns, 17)
    magnitude_columns: np.ndarray  # (columns,): the recorded columns of K
    average: np.ndarray  # (batch, heads, K, 17)
    features: np.ndarray  # (batch, heads, K, 17)
    age: np.ndarray  # (batch, heads, K, 8)
    scores: np.ndarray  # (batch, heads, K)
    retained: np.ndarray  # (batch, heads, M): kept columns, ascending

    def heads(self, row: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """(attention (new, K), positions (K,)) of each KV head of one row."""
        return list(zip(self.attention[row].astype(np.float64), self.positions[row], strict=True))


class Component:
    """One recording: `theta` (batch, 4172), `statistics`, three updates, their interval and tolerance."""

    def __init__(self, folder: Path, name: str):
        self.interval = 512 if "n512" in name else 64
        self.tolerance = 1e-3 if self.interval == 512 else 1e-4
        self.tensors = load_file(folder / f"{name}.safetensors")
        self.theta = self.tensors["params"][self.tensors["param_idx"]]
        self.statistics = recorded_statistics(self.tensors)

    def updates(self) -> Iterator[Update]:
        for u in range(3):
            tensors = {key[3:]: value for key, value in self.tensors.items() if key.startswith(f"u{u}.")}
            batch, heads, entries = tensors["pos_all"].shape
            attention = tensors["attn"] if "attn" in tensors else self._attention(tensors)
            attention = attention.reshape(batch, heads, -1, *attention.shape[2:]).mean(2)
            magnitudes = tensors["stft_mag"] if "stft_mag" in tensors else tensors["stft_mag_sub"]
            yield Update(
                attention=attention,
                positions=tensors["pos_all"],
                magnitudes=magnitudes,
                magnitude_columns=np.arange(0, entries, 1 if "stft_mag" in tensors else 8),
                average=tensors["ema"],
                features=tensors["feat"],
                age=tensors["recency_emb"],
                scores=tensors["scores"],
                retained=tensors["retained_idxs"],
            )

    def _attention(self, tensors: dict[str, np.ndarray]) -> np.ndarray:
        """softmax(q.k / sqrt(8)) of the new queries over the cached keys, query head h on KV head h // G."""
        q, k = self.tensors["q"].astype(np.float64), self.tensors["k"].astype(np.float64)
        positions, new = tensors["pos_all"], tensors["position_ids_new"][0]
        heads = q.shape[1]
        out = []
        for h in range(heads):
            head = h // (heads // k.shape[1])
            columns = positions[0, head]
            logits = q[0, h, new] @ k[0, head, columns].T / np.sqrt(q.shape[-1])
            logits[columns[None, :] > new[:, None]] = -np.inf
            weights = np.exp(logits - logits.max(1, keepdims=True))
            out.append(weights / weights.sum(1, keepdims=True))
        attention = np.stack(out)[None]
        rows = attention.shape[2] // tensors["attn_rows"].shape[2]
        np.testing.assert_allclose(attention[:, :, rows - 1 :: rows], tensors["attn_rows"], atol=1e-6)
        return attention


class Run:
    """One recorded generation: a prompt through a small Llama, three updates of 512, 32 greedy tokens."""

    interval = 512

    def __init__(self, folder: Path, name: str):
        self.tensors = load_file(folder / f"{name}.safetensors")
        self.theta = self.tensors["params"][0]
        self.statistics = recorded_statistics(self.tensors)
        self.prompt = self.tensors["input_ids"]  # (1, T)
        self.generated = self.tensors["generated"]  # (1, 32)
        self.fed = np.concatenate([self.prompt, self.generated[:, :-1]], axis=1)  # (1, T + 31)

    def kept(self, layer: int, fed: int) -> list[list[int]]:
        """Positions that each KV head of a layer holds after `fed` tokens, the unscored tail included."""
        updates = fed // self.interval
        tail = list(range(updates * self.interval, fed))
        if not updates:
            return [tail, tail]
        return [head.tolist() + tail for head in self.tensors[f"u{updates - 1}.l{layer}.retained_pos"]]

    def logits(self, which: str = "") -> tuple[np.ndarray, np.ndarray]:
        """Recorded logits (L, 512) and the positions (L,) that they follow.

        which: "" for the memory's run, decode steps included, or "full" for the full cache's, prompt only.
        """
        tokens = self.prompt.shape[1]
        prefix = "full" if which == "full" else "prefill"
        every = self.tensors[f"{prefix}_logits_sub"][0]
        tail = self.tensors[f"{prefix}_logits_tail"][0]
        parts = [(every, np.arange(31, tokens, 32)), (tail, np.arange(tokens - len(tail), tokens))]
        if which != "full":
            parts.append((self.tensors["decode_logits"][0], np.arange(tokens - 1, tokens + 31)))
        for logits, positions in parts:
            assert len(logits) == len(positions)
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
