"""What an evolution takes, computed from shapes: GPU memory, time per generation, journal, prompts.

Pure arithmetic; nothing is loaded. The formulas are in docs/operations.md with their symbols, and tests compare them
with a small model's real bytes and FLOP. No GPU was measured: the share of a GPU's peak that is reached is assumed.
Knows no files and no jobs' settings.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from namm_core.config import NammConfig

GIB = 2**30
PENDING = 15
"""Largest number of queries that are held because their hop is not finished."""


@dataclass(frozen=True)
class Model:
    """A Llama's shape; the defaults are Llama-3-8B."""

    layers: int = 32
    hidden: int = 4096
    heads: int = 32
    kv_heads: int = 8
    head: int = 128
    mlp: int = 14336
    vocabulary: int = 128_256
    bytes: int = 2
    """Bytes of one number: 2 for bfloat16, 4 for float32."""
    tied: bool = False
    """Whether the language-model head shares the embedding's weights."""

    @property
    def linear(self) -> int:
        """Parameters of the linear layers, without embedding and language-model head; each costs 2 FLOP per token."""
        attention = 2 * self.hidden * self.head * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.mlp)

    @property
    def parameters(self) -> int:
        """All parameters but those of norms; embedding and language-model head count once if tied."""
        return self.linear + (2 - self.tied) * self.vocabulary * self.hidden

    @property
    def token(self) -> int:
        """Bytes of one token's keys and values in all layers."""
        return 2 * self.layers * self.kv_heads * self.head * self.bytes


@dataclass(frozen=True)
class Job:
    """What is asked of the model."""

    tokens: int = 32_768
    """Tokens of a prompt."""
    kept: float = 0.3
    """Fraction that is stored right after an update; while a layer computes, its heads are as wide as the fullest."""
    rows: int = 1
    """Rows of one batch: candidates_per_call x samples_per_call."""
    population: int = 64
    samples: int = 192
    """Samples of a generation, over all tasks."""
    answer: float = 32
    """Tokens that are decoded greedily; a mean need not be a whole number."""
    reference: int = 8
    """Tokens of the reference answer, which is fed in one call."""
    memory: NammConfig = field(default_factory=NammConfig)

    def blocks(self) -> Iterator[tuple[int, float]]:
        """For each block of a prompt: its new tokens, and the columns that are held with them."""
        for start in range(0, self.tokens, self.memory.update_interval):
            new = min(self.memory.update_interval, self.tokens - start)
            yield new, self.kept * start + new

    @property
    def end_to_end(self) -> bool:
        """Whether heads hold different numbers of tokens, and are stored end to end."""
        return self.memory.selection == "ragged" and self.kept < 1

    @property
    def held(self) -> float:
        """Tokens held right after the prompt; the tail behind the last update is held whole."""
        tail = self.tokens % self.memory.update_interval
        return self.kept * (self.tokens - tail) + tail


@dataclass(frozen=True)
class Gpu:
    """A GPU's data sheet, and the share of it that is assumed to be reached; the defaults are an H100 SXM."""

    tensor: float = 989.0
    """Peak TFLOP/s in the model's precision, dense."""
    scalar: float = 67.0
    """Peak TFLOP/s in float32, in which the memory computes."""
    bandwidth: float = 3.35
    """Peak TB/s of its memory."""
    of_peak: float = 0.4
    """Assumed share of both peaks."""
    of_bandwidth: float = 0.7
    """Assumed share of the bandwidth."""


@dataclass(frozen=True)
class Memory:
    """Bytes on the GPUs of one worker, at the moments at which each part is largest."""

    weights: float
    cache: float
    """Keys and values held after the prompt."""
    state: float
    """What the memory holds for the same tokens."""
    attention: float
    """Activations inside attention at the last block of the last layer."""
    mlp: float
    """Activations inside the last layer's MLP."""
    decode: float
    """A second copy of cache and state, while the reference answer is scored."""

    @property
    def total(self) -> float:
        """Bytes at the worst moment."""
        return self.weights + self.cache + self.state + max(self.attention, self.mlp, self.decode)


@dataclass(frozen=True)
class Work:
    """What one evaluation (one row of a batch) takes."""

    linear: float
    """FLOP of the linear layers."""
    attention: float
    """FLOP of attention over what is held."""
    memory: float
    """FLOP of the memory, float32: spectrogram and backward attention."""
    own_traffic: float
    """Bytes read and written by the model's norms and activations."""
    traffic: float
    """Bytes read and written by attention and memory, whose operations are not fused."""
    decode: float
    """Bytes read and written while the answers are decoded."""


def state_bytes(model: Model, job: Job, pending: int) -> int:
    """Bytes that the memory holds for one token in one KV head: average, carried and pending queries, position."""
    return 4 * job.memory.frequencies + min(model.bytes, 4) * (job.memory.hop + pending) + 4


def memory(model: Model, job: Job) -> Memory:
    """Bytes on the GPUs of a worker that evaluates `job.rows` rows at a time."""
    heads = job.rows * model.layers * model.kv_heads
    cache = job.rows * model.token * job.held
    state = heads * job.held * state_bytes(model, job, job.tokens % job.memory.hop)
    new, columns = max(job.blocks(), key=lambda block: block[0] * block[1])
    # Bytes for each (query, key) of a block, which a GPU takes in one tile (`attention.tiles`): the softmax with, where
    # scores are not float32, scores and their copy; or weights and their sum over query groups while it is transformed
    # (the transforms take the weights' place where a group has two heads).
    softmax = model.heads * (4 if model.bytes == 4 else model.bytes + 8)
    transform = model.heads * (4 if model.bytes == 4 else model.bytes + 4) + 4 * model.kv_heads
    transform += 8 * model.kv_heads if model.heads == model.kv_heads else 0
    # Beside them the block's queries, scaled and in another order, its results and its mask; the layer's own, dense.
    of_block = new * model.bytes * (4 * model.heads * model.head + new)
    dense = columns * model.kv_heads * (2 * model.head * model.bytes + state_bytes(model, job, 0))
    inside = job.rows * (new * columns * max(softmax, transform) + of_block + dense)
    whole = job.rows * job.tokens * model.bytes
    # In attention: embeddings, the layer's input, the same normed, queries, results, keys, values, cosines, sines.
    # In the MLP: embeddings, the layer's input, attention's result, the same normed, cosines, sines, gate, up, product.
    projections = 3 * model.hidden + 2 * (model.heads + model.kv_heads + 1) * model.head
    return Memory(
        weights=model.bytes * model.parameters,
        cache=cache,
        state=state,
        attention=whole * projections + inside,
        mlp=whole * (4 * model.hidden + 2 * model.head + 3 * model.mlp),
        decode=(0 if job.end_to_end else cache) + heads * job.held * state_bytes(model, job, PENDING),
    )


def work(model: Model, job: Job) -> Work:
    """What one row of a batch takes if it has a memory."""
    whole = [columns for new, columns in job.blocks() if new == job.memory.update_interval]
    seen = sum(new * columns for new, columns in job.blocks())
    masked = sum(new * (columns if job.end_to_end else new) for new, columns in job.blocks())
    heads, half = model.layers * model.kv_heads, model.bytes < 4
    # FLOP of backward attention: for each pair of keys, half of which it sees (embeddings and a one are queries' mates
    # and values, padded to whole vectors), and of its two bilinear forms for each key.
    inner = job.memory.embedding + 1
    backward = 2 * 16 * math.ceil(inner / 16)
    linear = 4 * inner**2
    # Bytes for each (query, key) of a KV head, and for a mask; for each key at an update (what is held is moved,
    # backward attention); for each token (the model's norms and activations).
    of_pair = _pair_bytes(model) + 64  # and the spectrogram
    of_mask = 4 * model.bytes * model.heads
    of_key = 8 * model.head * model.bytes + 6000
    of_token = (50 if half else 28) * model.hidden + (26 * model.heads + 16 * model.kv_heads) * model.head
    of_token = model.bytes * (of_token + 8 * model.mlp)
    pairs = model.kv_heads * of_pair * seen + of_mask * masked
    return Work(
        linear=2 * model.linear * job.tokens + 2 * model.hidden * model.vocabulary,
        attention=4 * model.layers * model.heads * model.head * seen,
        memory=heads * (4 * job.memory.n_fft * seen + backward * sum(k * k for k in whole) + linear * sum(whole)),
        own_traffic=model.layers * job.tokens * of_token,
        traffic=model.layers * pairs + heads * of_key * sum(whole),
        decode=_decode(model, job, _step_bytes(model, job)),
    )


def _pair_bytes(model: Model) -> int:
    """Bytes moved per (query, key) of a KV head: logits, softmax, weights of each query head, their sum."""
    groups = model.heads // model.kv_heads
    return groups * (16 if model.bytes == 4 else 4 * model.bytes + 16) + max(12 * (groups - 1), 8)


def _step_bytes(model: Model, job: Job) -> int:
    """Bytes moved per key that a KV head holds, when one token is decoded."""
    own, state = 2 * model.head * model.bytes, state_bytes(model, job, PENDING // 2)
    # Keys and values are copied with the new one, and read; the state is copied, its pending queries to float32 and
    # back; positions, and every 16 steps the spectrogram of a hop.
    moved = 3 * own + 2 * state + _pair_bytes(model) + 12 * (PENDING // 2 + 1) + 140
    # What is stored end to end is made dense by two copies more; the state's way back, an index.
    return moved + (4 * own + 4 * state + 200 if job.end_to_end else 0)


def _decode(model: Model, job: Job, of_key: float) -> float:
    """Bytes moved while the reference answer is fed at once, and an answer of its own is decoded token by token."""
    steps = job.answer - 1 + (job.reference > 1)
    return steps * (model.bytes * model.parameters / job.rows + model.layers * model.kv_heads * job.held * of_key)


def seconds(one: Work, gpu: Gpu) -> float:
    """Seconds of one evaluation on one GPU, whose kernels run one after the other."""
    tensor = (one.linear + one.attention) / (gpu.tensor * gpu.of_peak)
    scalar = one.memory / (gpu.scalar * gpu.of_peak)
    moved = (one.own_traffic + one.traffic + one.decode) / (gpu.bandwidth * gpu.of_bandwidth)
    return 1e-12 * (tensor + scalar + moved)


def full_seconds(model: Model, job: Job, gpu: Gpu) -> float:
    """Seconds of one evaluation with the full cache, whose fused attention computes half of the square."""
    whole = dataclasses.replace(job, kept=1.0)
    made = work(model, whole)
    attention = 2 * model.layers * model.heads * model.head * job.tokens**2
    decode = _decode(model, whole, 6 * model.head * model.bytes)  # copied and read
    return seconds(dataclasses.replace(made, attention=attention, memory=0.0, traffic=0.0, decode=decode), gpu)


def generation_seconds(model: Model, job: Job, gpu: Gpu, gpus: int) -> float:
    """Seconds of a generation of the search: all candidates and their mean with a memory, the full cache once."""
    one = seconds(work(model, job), gpu)
    return job.samples * ((job.population + 1) * one + full_seconds(model, job, gpu)) / gpus


def journal_bytes(model: Model, prediction: int) -> int:
    """Bytes of one result: names and numbers, a kept fraction for each layer, the answer's text."""
    return 220 + 21 * model.layers + prediction


def prompt_bytes(job: Job) -> int:
    """Bytes of one prompt in Redis: token ids of 4 bytes, answers as text of 4 bytes a character, headers."""
    return 4 * (job.tokens + job.reference) + 600
