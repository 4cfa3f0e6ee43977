"""A policy that forgets once, at a given place of the text: *context, then question*, instead of *streaming*.

Knows no policy by name, and no cache.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from namm_core.policy import check_count
from namm_core.protocols import Attended, Policy, State, View, Watch
from namm_core.rotary import Rotary


class Once:
    """A `Policy` whose memory is updated once, right after the first `context` tokens; what follows stays whole.

    Until then everything is held. Raises ValueError for a context without a token.
    """

    def __init__(self, policy: Policy, context: int) -> None:
        check_count("context", context, least=1)
        self.policy = copy.copy(policy)
        """The policy that decides, as if its update interval were the context."""
        self.policy.update_interval = self.update_interval = context
        self.takes_budget, self.rows = policy.takes_budget, policy.rows
        self.needs_attention, self.needs_queries = policy.needs_attention, policy.needs_queries
        self.advances = False  # kernels are tried on blocks of one interval, not on one as long as a text

    def start(self, rows: int, heads: int, device: torch.device, dtype: torch.dtype) -> State:
        """The policy's own. See `Policy.start`."""
        return self.policy.start(rows, heads, device, dtype)

    def observe(self, state: State, attention: Tensor, fed: list[int], counts: list[int]) -> State:
        """The policy's own. See `Policy.observe`."""
        return self.policy.observe(state, attention, fed, counts)

    def watch(self, state: State, positions: Tensor, fed: int, new: int, groups: int) -> Watch:
        """The policy's own. See `Policy.watch`."""
        return self.policy.watch(state, positions, fed, new, groups)

    def advance(self, state: State, attended: Attended, fed: int) -> State:
        """The policy's own. See `Policy.advance`."""
        return self.policy.advance(state, attended, fed)

    def summarise(self, summary: State, queries: Tensor, positions: Tensor, rotary: Rotary | None) -> State:
        """The policy's own. See `Policy.summarise`."""
        return self.policy.summarise(summary, queries, positions, rotary)

    def keep(self, state: State, view: View) -> Tensor:
        """(rows, kv_heads, keys) bool: the policy's choice at the end of the context, everything later on."""
        held = view.positions >= 0
        ends = view.due & (view.newest + 1 == self.update_interval)
        if not bool(ends.any()):
            return held
        return torch.where(ends[:, None, None], self.policy.keep(state, view), held)
