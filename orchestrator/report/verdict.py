"""What a finished run won or lost, in one sentence. Knows `result.json` and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def verdict(result: Mapping[str, Any]) -> str:
    """The memory against the full cache on the same held-out samples, with the paired 95 % interval where there is
    one."""
    namm, full = result["policies"]["namm"], result["policies"]["full"]["mean"]
    difference, (low, high) = namm["difference"], namm["difference_interval"]
    interval = "" if low is None else f", 95 % interval {low:+.3f} to {high:+.3f}"
    said = f"With {100 * namm['kept']:.0f} % of the cache the memory scores {namm['mean']:.3f} on {namm['samples']} "
    if low is None or low <= 0 <= high:
        return (
            f"{said}held-out samples, the full cache {full:.3f}: no difference that these samples can show "
            f"({difference:+.3f}{interval})."
        )
    how = "more" if low > 0 else "less"
    return f"{said}held-out samples, {abs(difference):.3f} {how} than the full cache ({full:.3f}{interval})."
