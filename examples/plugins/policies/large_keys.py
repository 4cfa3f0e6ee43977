"""Large keys: keeps the tokens whose keys have the largest norm, and the newest tokens whatever their norm."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from namm_core import Scoring, State, View


@dataclass
class LargeKeys(Scoring):
    """Keeps the keys of largest L2 norm; `budget`, `update_interval`, `over` and `sinks` come with the base class.

    The fields are the options in a job: `{name: large_keys, recent: 64}`.
    """

    recent: int | float = 32
    """Newest tokens of each row that always stay; they count towards the budget."""

    def scores(self, state: State, view: View) -> Tensor:
        """(rows, kv_heads, keys), the higher the better."""
        return view.keys.float().norm(dim=-1)
