"""Streaming spectrogram of attention columns: what a NAMM sees of a cached token.

A key's signal is the attention it receives, query after query. Every `hop` queries a frame of `n_fft` of them
is windowed and Fourier transformed, and the magnitudes enter a moving average (arXiv 2410.13166, section 3.1).
Only the average and the last hop of every column are held, never a block of attention.

Keys are the last axis of every tensor here, so that forgetting is one gather. Knows nothing of scores.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from namm_core.config import NammConfig
from namm_core.protocols import State, Watch
from namm_core.scoring import fourier
from namm_core.scoring import spectrogram_loops as transform


class Spectrogram:
    """Moving average of |STFT| for each key, advanced by whatever number of queries a forward call brings.

    Its state is `average` (rows, kv_heads, frequencies, keys); `carried` (rows, kv_heads, hop, keys), the last whole
    hop of queries; `pending` (rows, kv_heads, 0..hop, keys), the queries since.
    """

    def __init__(self, config: NammConfig) -> None:
        self.config = config
        hop = config.hop
        self._window = fourier.window(config.n_fft).float().view(2, hop, 1)
        # One step of decimation in frequency: with a, b the windowed halves of a frame, even frequencies are the
        # transform of a + b and odd ones that of a - b. Half the products, and cancellation comes before rounding.
        angle = fourier.angles(config.n_fft)[:, :hop]
        # The sines of frequencies 0 and n/2 vanish.
        self._even = torch.cat([torch.cos(angle[0::2]), torch.sin(angle[2:-1:2])]).float()
        self._odd = torch.cat([torch.cos(angle[1::2]), torch.sin(angle[1::2])]).float()
        self.decay = config.ema**hop

    def start(self, rows: int, heads: int, device: torch.device, dtype: torch.dtype = torch.float32) -> State:
        """The state of a memory that has seen nothing: no keys, no pending queries.

        dtype: of the cached keys; where they are in half precision, recent attention (0 to 1) is held in float16.
        """
        held = torch.float32 if dtype.itemsize >= 4 else torch.float16
        shape = {"average": (self.config.frequencies, torch.float32), "carried": (self.config.hop, held)}
        shape["pending"] = (0, held)
        return {name: torch.zeros(rows, heads, n, 0, device=device, dtype=kind) for name, (n, kind) in shape.items()}

    def observe(self, state: State, attention: Tensor, fed: list[int], counts: list[int]) -> State:
        """Advances the averages by one block of queries.

        attention: (rows, kv_heads, new, keys), mean over each query group, zero where a query came before a key
        or where the row has fewer than `new` tokens (those are right-aligned, blank queries in front);
        fed: tokens of each row before this block; counts: tokens of each row in it. Returns the new state.
        """
        hop = self.config.hop
        phases = [f % hop for f in fed]
        if len(set(phases)) == 1 and len(set(counts)) == 1 and state["pending"].shape[2] == phases[0]:
            return self._observe_alike(state, attention)
        return self._observe_each(state, attention, phases, counts)

    def watch(self, state: State, fed: int, new: int, groups: int) -> Watch:
        """Advances the averages by `new` queries tile by tile; writes into `state`. See `Policy.watch`."""
        compiled = transform.serves(self.config.n_fft, state["average"])
        return (_CompiledWatch if compiled else _Watch)(self, state, new, groups)

    def _observe_alike(self, state: State, attention: Tensor) -> State:
        """All rows stand at the same phase of a hop: no row needs a mask."""
        hop, held = self.config.hop, state["pending"].dtype
        if state["pending"].shape[2]:
            attention = torch.cat([state["pending"], attention], dim=2)
        frames = attention.shape[2] // hop
        pending = attention[:, :, frames * hop :].to(held, copy=True)  # never a view of the whole block
        if not frames:
            return {**state, "pending": pending}
        blocks = attention[:, :, : frames * hop].unflatten(2, (frames, hop))
        magnitudes = self._magnitudes(state["carried"], blocks)
        exponents = torch.arange(frames - 1, -1, -1, device=attention.device, dtype=torch.float64)
        weights = ((1 - self.decay) * self.decay**exponents).float()  # docs/memory.md 4
        average = torch.einsum("rhtfk,t->rhfk", magnitudes, weights)
        average.add_(state["average"], alpha=self.decay**frames)
        return {"average": average, "carried": blocks[:, :, -1].to(held, copy=True), "pending": pending}

    def _observe_each(self, state: State, attention: Tensor, phases: list[int], counts: list[int]) -> State:
        """Rows at different phases: queries go to slots that begin at each row's own hop boundary."""
        hop, device = self.config.hop, attention.device
        rows, heads, new, keys = attention.shape
        phase, count = torch.tensor(phases, device=device), torch.tensor(counts, device=device)
        frames = (phase + count) // hop  # whole hops that each row completes
        blocks = int((phase + count).max() - 1) // hop + 1
        slots = torch.zeros(rows, heads, (blocks + 1) * hop + new, keys, device=device)
        held = state["pending"].shape[2]
        slots[:, :, :held] = state["pending"]
        # Blank queries carry zeros, so that sending them past the end only needs room.
        query = torch.arange(new, device=device) - (new - count)[:, None]
        target = torch.where(query >= 0, phase[:, None] + query, (blocks + 1) * hop)
        slots.scatter_add_(2, target[:, None, :, None].expand_as(attention), attention)
        grid = slots[:, :, : (blocks + 1) * hop].unflatten(2, (blocks + 1, hop))
        magnitudes = self._magnitudes(state["carried"], grid[:, :, :blocks])
        exponents = frames[:, None] - 1 - torch.arange(blocks, device=device)
        weights = (1 - self.decay) * self.decay ** exponents.clamp(min=0).double()
        weights = torch.where(exponents >= 0, weights, 0.0).float()
        average = torch.einsum("rhtfk,rt->rhfk", magnitudes, weights)
        average += state["average"] * (self.decay ** frames.double()).float()[:, None, None, None]
        history = torch.cat([state["carried"][:, :, None], grid.to(state["carried"].dtype)], dim=2)
        row = torch.arange(rows, device=device)
        return {
            "average": average,
            "carried": history[row, :, frames],
            "pending": history[row, :, frames + 1],
        }

    def _magnitudes(self, carried: Tensor, blocks: Tensor) -> Tensor:
        """|X| of each frame, (rows, kv_heads, frames, frequencies, keys), from hop blocks and the one before."""
        device, half = blocks.device, self.config.hop // 2
        window = self._window.to(device)
        hops = torch.cat([carried[:, :, None].float(), blocks.float()], dim=2)
        first, second = hops[:, :, :-1] * window[0], hops[:, :, 1:] * window[1]
        even = torch.matmul(self._even.to(device), first + second).square_()
        odd = torch.matmul(self._odd.to(device), first - second).square_()
        power = even.new_empty(*even.shape[:3], self.config.frequencies, even.shape[-1])
        power[:, :, :, 0::2] = even[:, :, :, : half + 1]
        power[:, :, :, 2:-1:2] += even[:, :, :, half + 1 :]
        power[:, :, :, 1::2] = odd[:, :, :, :half] + odd[:, :, :, half:]
        return power.sqrt_()


@functools.lru_cache(maxsize=256)
def _basis(config: NammConfig, frames: int, scale: float, device: torch.device) -> Tensor:
    """(frames, n_fft, n_fft): windowed cosines, then sines, times each frame's weight in the average and `scale`.

    The sines of frequencies 0 and n_fft / 2 vanish and are left out.
    """
    angle = fourier.angles(config.n_fft)
    decay = config.ema**config.hop
    weights = scale * (1 - decay) * decay ** torch.arange(frames - 1, -1, -1, dtype=torch.float64)  # docs/memory.md 4
    basis = torch.cat([torch.cos(angle), torch.sin(angle[1:-1])]) * fourier.window(config.n_fft)
    return (weights[:, None, None] * basis).float().to(device)


class _CompiledWatch:
    """One block's tiles, each in one pass of `namm_core.scoring.spectrogram_loops` over what is held."""

    def __init__(self, spectrogram: Spectrogram, state: State, new: int, groups: int) -> None:
        self._config, self._state = spectrogram.config, state
        self._phase, self._after = state["pending"].shape[2], (state["pending"].shape[2] + new) % spectrogram.config.hop
        self._waiting: Tensor | None = None
        """(rows, kv_heads, hop, keys), queries whose hop is not yet full; None while every tile ends with a hop."""
        if self._phase or self._after:
            self._wait()

    def begin(self, heads: slice, first: int) -> None:
        """See `Watch.begin`."""
        self._heads, self._first, self._at = heads, first, self._phase
        self._carried = self._state["carried"].flatten(0, 1)[heads, :, first:].float()  # held in half precision, a copy

    def show(self, weights: Tensor, scale: Tensor | None) -> None:
        """See `Watch.show`."""
        if self._waiting is None and weights.shape[2] % self._config.hop:
            self._wait()
        some = self._heads, slice(None), slice(self._first, self._first + weights.shape[3])
        average, carried = self._state["average"].flatten(0, 1)[some], self._carried[..., : weights.shape[3]]
        waiting = carried if self._waiting is None else self._waiting.flatten(0, 1)[some]
        self._at = transform.advance(self._config, weights, scale, average, carried, waiting, self._at)

    def end(self) -> None:
        """See `Watch.end`."""
        if self._carried.dtype != self._state["carried"].dtype:
            self._state["carried"].flatten(0, 1)[self._heads, :, self._first :] = self._carried

    def state(self) -> State:
        """See `Watch.state`."""
        if not self._phase and not self._after:
            return self._state
        waiting = self._wait() if self._waiting is None else self._waiting
        pending = waiting[:, :, : self._after].to(self._state["pending"].dtype, copy=True)
        return {**self._state, "pending": pending}

    def _wait(self) -> Tensor:
        pending = self._state["pending"]
        rows, heads, phase, keys = pending.shape
        self._waiting = torch.zeros(rows, heads, self._config.hop, keys)
        self._waiting[:, :, :phase] = pending
        return self._waiting


class _Watch:
    """One block's tiles: frames are cut where they fall and transformed while their attention is in the cache.

    Queries are the first axis here, so that a frame is n_fft of them in a row: frames overlap, and are never copied.
    """

    def __init__(self, spectrogram: Spectrogram, state: State, new: int, groups: int) -> None:
        self._spectrogram, self._groups, self._before = spectrogram, groups, state
        self._hop, self._n_fft = spectrogram.config.hop, spectrogram.config.n_fft
        pending = state["pending"]
        left = (pending.shape[2] + new) % self._hop
        self._after = {**state, "pending": pending.new_zeros(*pending.shape[:2], left, pending.shape[3])}

    def begin(self, heads: slice, first: int) -> None:
        """See `Watch.begin`."""
        # Of these heads, (heads, queries or frequencies, keys).
        self._held = {name: t.flatten(0, 1)[heads, :, first:] for name, t in self._before.items()}
        self._left = {name: t.flatten(0, 1)[heads, :, first:] for name, t in self._after.items()}
        self._recent: Tensor | None = None

    def show(self, weights: Tensor, scale: Tensor | None) -> None:
        """See `Watch.show`."""
        heads, _, new, keys = weights.shape
        hop, groups = self._hop, self._groups
        # Everything here is a sum over the query group; the mean is taken in the basis.
        if self._recent is None:
            carried, pending = self._held["carried"][..., :keys], self._held["pending"][..., :keys]
            recent = hop + pending.shape[1]
            signal = weights.new_empty(recent + new, heads, keys)
            torch.mul(carried.transpose(0, 1), groups, out=signal[:hop])
            if recent > hop:
                torch.mul(pending.transpose(0, 1), groups, out=signal[hop:recent])
        else:
            recent, _, before = self._recent.shape
            signal = weights.new_empty(recent + new, heads, keys)
            signal[:recent, :, :before] = self._recent
            signal[:recent, :, before:] = 0
        to = signal[recent:].transpose(0, 1)
        for group in range(groups):  # several times faster than `sum` over a short inner axis
            part = weights[:, group] if scale is None else weights[:, group] * scale[:, group, :, None]
            to = to.copy_(part) if group == 0 else to.add_(part)
        frames = (recent + new) // hop - 1
        if frames:
            self._transform(signal, frames, weights)
        self._recent = signal[frames * hop :]

    def _transform(self, signal: Tensor, frames: int, room: Tensor) -> None:
        """Adds the magnitudes of `frames` frames; the transforms take the place of `room`, which is in the cache."""
        _, heads, keys = signal.shape
        size = heads * keys
        cut = signal.as_strided((frames, self._n_fft, size), (self._hop * size, size, 1))
        basis = _basis(self._spectrogram.config, frames, 1 / self._groups, signal.device)
        products = frames * self._n_fft * size
        room = room.view(-1)[:products] if room.numel() >= products else room.new_empty(products)
        parts = torch.bmm(basis, cut, out=room.view(frames, self._n_fft, size))
        top = self._n_fft // 2
        power = parts[:, : top + 1].square_()
        power[:, 1:top].addcmul_(parts[:, top + 1 :], parts[:, top + 1 :])
        total = power.sqrt_().sum(0).view(-1, heads, keys).transpose(0, 1)
        self._left["average"][..., :keys].mul_(self._spectrogram.decay**frames).add_(total)

    def end(self) -> None:
        """See `Watch.end`."""
        assert self._recent is not None, "a tile was shown"
        hop, recent = self._hop, self._recent.transpose(0, 1)
        torch.mul(recent[:, :hop], 1 / self._groups, out=self._left["carried"])
        if recent.shape[1] > hop:
            torch.mul(recent[:, hop:], 1 / self._groups, out=self._left["pending"])

    def state(self) -> State:
        """See `Watch.state`."""
        return self._after
