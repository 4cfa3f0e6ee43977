"""The oracle: what a NAMM computes for one sample in one layer, in plain NumPy float64, slow and straight.

Written from the paper (Cetin et al., An Evolved Universal Transformer Memory, arXiv 2410.13166) and the
conventions of its public implementation alone. It keeps the *whole* attention history of every cached key and
transforms it anew at each update; nothing is streamed, nothing is batched, nothing is padded. It knows
nothing of torch, of models, or of the code under test.

Symbols: n new tokens of an update, K cache entries of a KV head (new ones included), T frames of a signal.
"""

from dataclasses import dataclass, field

import numpy as np

N_FFT, HOP, BINS = 32, 16, 17
EMA = 0.99
AGE_DIM, AGE_MAX_PERIOD = 8, 50_000
HIDDEN = 32
EMBEDDING = AGE_DIM + BINS
NUM_PARAMETERS = 4172


# --- spectrogram and moving average


def spectrogram(signal: np.ndarray) -> np.ndarray:
    """|STFT| (T, 17) of one key's attention (queries,), from the sequence's first query on."""
    padded = np.concatenate([np.zeros(N_FFT - HOP), signal])  # 16 zeros in front, none behind, no centring
    m = np.arange(N_FFT)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * m / N_FFT)  # periodic Hann
    f = np.arange(BINS)[:, None]
    transform = np.exp(-2j * np.pi * f * m / N_FFT)  # (17, 32), not normalised
    frames = len(signal) // HOP  # frame t covers 32 padded samples from 16 t on
    return np.stack([np.abs(transform @ (window * padded[HOP * t : HOP * t + N_FFT])) for t in range(frames)])


def moving_average(magnitudes: np.ndarray) -> np.ndarray:
    """e (17,) = sum_t (1 - g) g^(T-1-t) |X_t| over the T frames since the first query; g = 0.99^16.

    Taken over the whole history this is the rule "add 0.99^n times the previous e": 0.99^n = g^(n / 16).
    """
    g = EMA**HOP
    frames = len(magnitudes)
    return sum((1 - g) * g ** (frames - 1 - t) * magnitudes[t] for t in range(frames))


# --- normalisation


@dataclass(frozen=True)
class Statistics:
    """Mean (17,), population variance (17,) and number of pooled tokens behind them."""

    mean: np.ndarray
    var: np.ndarray
    count: int

    @classmethod
    def of(cls, averages: np.ndarray) -> "Statistics":
        pooled = averages.reshape(-1, BINS)
        return cls(pooled.mean(0), pooled.var(0), len(pooled))

    def merge(self, other: "Statistics") -> "Statistics":
        w = self.count / (self.count + other.count)
        mean = w * self.mean + (1 - w) * other.mean
        var = w * self.var + (1 - w) * other.var + (other.mean - self.mean) ** 2 * w * (1 - w)
        return Statistics(mean, var, self.count + other.count)

    def normalise(self, average: np.ndarray) -> np.ndarray:
        return (average - self.mean) / np.maximum(np.sqrt(self.var), 1e-7)


# --- age


def age_embedding(positions: np.ndarray) -> np.ndarray:
    """(K, 8) of true positions (K,): sines of r omega_j first, then cosines; the newest token has r = 0."""
    r = positions.max() - positions
    omega = AGE_MAX_PERIOD ** (-np.arange(AGE_DIM // 2) / (AGE_DIM // 2))
    angle = r[:, None] * omega
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


# --- backward attention memory (BAM)


@dataclass(frozen=True)
class Parameters:
    """theta (4172,) cut into its six matrices; (in, out), row-major, y = x W + b."""

    w1: np.ndarray
    b1: np.ndarray
    w2: np.ndarray
    b2: np.ndarray
    w3: np.ndarray
    b3: float

    @classmethod
    def of(cls, theta: np.ndarray) -> "Parameters":
        first, second = (EMBEDDING, 3 * HIDDEN), (HIDDEN, 2 * EMBEDDING)
        shapes = [first, first[1:], second, second[1:], (EMBEDDING,), ()]
        parts, start = [], 0
        for shape in shapes:
            size = int(np.prod(shape))
            parts.append(np.asarray(theta, dtype=np.float64)[start : start + size].reshape(shape))
            start += size
        assert start == NUM_PARAMETERS == len(theta)
        return cls(*parts)


def bam_scores(p: Parameters, e: np.ndarray) -> np.ndarray:
    """Scores (K,) of one KV head's token embeddings e (K, 25), in ascending position."""
    tokens = len(e)
    q, k, v = np.split(e @ p.w1 + p.b1, 3, axis=1)  # step 1
    attended = np.empty((tokens, HIDDEN))
    for i in range(tokens):  # step 2: token i sees itself and newer tokens
        logits = k[i:] @ q[i] / np.sqrt(HIDDEN)
        weights = np.exp(logits - logits.max())
        attended[i] = weights / weights.sum() @ v[i:]
    residual, multiplier = np.split(attended @ p.w2 + p.b2, 2, axis=1)  # step 3
    h = e * (1 + multiplier) + residual  # step 4
    return h @ p.w3 + p.b3  # step 5


# --- selection


def select(scores: list[np.ndarray], newest: list[int], selection: str) -> tuple[list[np.ndarray], float]:
    """Which tokens the heads of one sample keep, and how near the decision was.

    Args:
        scores: (K,) per head. newest: column of the newest token per head. selection: "padded" or "ragged".

    Returns:
        keep (K,) bool per head, and the margin: a smaller change of every score alters no keep.
    """
    forced = [s.copy() for s in scores]
    for s, column in zip(forced, newest, strict=True):
        s[column] = np.inf
    keep = [s >= 0 for s in forced]  # a tie at 0 keeps
    if selection == "ragged":
        return keep, min(np.abs(s).min() for s in forced)
    most = max(int(k.sum()) for k in keep)  # M: over the heads of this sample in this layer only
    order = [np.argsort(-s, kind="stable") for s in forced]
    keep = [np.isin(np.arange(len(s)), best[:most]) for s, best in zip(forced, order, strict=True)]
    last = [s[best[most - 1]] for s, best in zip(forced, order, strict=True)]
    first_out = [s[best[most]] if most < len(s) else -np.inf for s, best in zip(forced, order, strict=True)]
    gap = min(kept - lost for kept, lost in zip(last, first_out, strict=True))
    return keep, min(max(last), -max(first_out), gap / 2)  # M falls, M rises, another token is among the best M


# --- one layer's memory of one sample


@dataclass(frozen=True)
class HeadStep:
    """What one KV head's update produced; the columns (K) are those of the call."""

    magnitudes: np.ndarray  # (frames of this update, K, 17)
    average: np.ndarray  # (K, 17), before normalisation
    age: np.ndarray  # (K, 8)
    features: np.ndarray  # (K, 17), normalised where there are statistics
    scores: np.ndarray  # (K,), before the newest is forced
    keep: np.ndarray  # (K,) bool


@dataclass
class Reference:
    """The memory of one sample in one layer under one theta.

    `history[head]` maps the position of each cached key to its attention from every query since the first
    one; a key forgotten is a key deleted.
    """

    theta: np.ndarray
    selection: str
    statistics: Statistics | None = None
    history: list[dict[int, np.ndarray]] = field(default_factory=list)
    seen: int = 0

    def update(self, heads: list[tuple[np.ndarray, np.ndarray]]) -> tuple[list[HeadStep], float]:
        """One update of every KV head; `heads` holds (attention (n, K), positions (K,) ascending) of each.

        Returns:
            One HeadStep a head, and the margin of the decision (see `select`).
        """
        parameters = Parameters.of(self.theta)
        self.history = self.history or [{} for _ in heads]
        seen = []
        for head, (attention, positions) in enumerate(heads):
            new = attention.shape[0]
            old = self.history[head]
            assert list(positions[:-new]) == sorted(old), "the old columns are what the last update kept"
            before = np.zeros(self.seen)  # no query came before a new key
            for column, position in enumerate(positions.tolist()):
                old[position] = np.concatenate([old.get(position, before), attention[:, column]])
            whole = np.stack([spectrogram(old[p]) for p in positions.tolist()], axis=1)  # (T, K, 17)
            average = moving_average(whole)
            features = self.statistics.normalise(average) if self.statistics else average
            age = age_embedding(positions)
            scores = bam_scores(parameters, np.concatenate([age, features], axis=1))  # age first
            seen.append((whole[-(new // HOP) :], average, age, features, scores))
        keeps, margin = select([s[-1] for s in seen], [int(np.argmax(p)) for _, p in heads], self.selection)
        self.seen += heads[0][0].shape[0]
        for head, (_, positions) in enumerate(heads):
            for position in positions[~keeps[head]].tolist():
                del self.history[head][position]
        return [HeadStep(*s, keep) for s, keep in zip(seen, keeps, strict=True)], margin
