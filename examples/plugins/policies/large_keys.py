"""Large keys: keeps the tokens whose keys have the largest norm, and the newest tokens whatever their norm."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from namm_core import Budgeted, State, View
from namm_core.policy import check_count, newest, top


@dataclass
class LargeKeys(Budgeted):
    """Keeps the keys of largest L2 norm in each head; `budget` and `update_interval` come with the base class.

    The fields are the options in a job: `{name: large_keys, recent: 64}`. Raises ValueError for a negative `recent`.
    """

    recent: int = 32
    """Newest tokens of each row that always stay; they count towards the budget."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("recent", self.recent, least=0)

    def keep(self, state: State, view: View) -> Tensor:
        """(rows, kv_heads, keys) bool: which of the cached tokens stay."""
        norms = view.keys.float().norm(dim=-1)  # (rows, kv_heads, keys)
        recent = newest(view, view.newest.new_full(view.newest.shape, self.recent))
        return top(norms.masked_fill(recent, float("inf")), view, self.tokens(view))
