"""Which policies a comparison has, as a person writes them: a name, or a name with options and a size.

    policies: [full, namm, {name: snapkv, window: 64, budget: 0.2}]
    --policies "full,namm,{name: snapkv, window: 64, budget: 0.2}"

Knows how entries are written and labelled; which policies and options there are is known by `namm_core.policies`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import yaml

from namm_core.config import Range, Ranged, Readable, from_fields


@dataclass(frozen=True)
class PolicyEntry(Ranged, Readable):
    """One policy of a comparison."""

    name: str
    """`full`, `namm`, `oracle`, or a module of `namm_core.policies`."""
    options: dict[str, Any] = field(default_factory=dict)
    """The policy's own options, plain values, in the order in which they were given."""
    budget: Annotated[float | None, Range(above=0, below=1)] = None
    """Kept fraction that its size is fixed at; None: the size at which policies are compared, the NAMM's own."""

    @property
    def label(self) -> str:
        """Name of its row in tables: `snapkv`, `snapkv(window=64)`, `snapkv(window=64, budget=0.2)`."""
        given = {**self.options} if self.budget is None else {**self.options, "budget": f"{self.budget:g}"}
        return self.name + (f"({', '.join(f'{key}={value}' for key, value in given.items())})" if given else "")

    @property
    def plain(self) -> str | dict[str, Any]:
        """The entry as it is written in YAML: the name, or a mapping. `from_plain` reads it back."""
        fixed = {} if self.budget is None else {"budget": self.budget}
        return {"name": self.name, **self.options, **fixed} if self.options or fixed else self.name

    @classmethod
    def from_plain(cls, value: Any, where: str) -> PolicyEntry:
        """Reads a name, or a mapping of `name`, `budget` and the policy's options. Raises ValueError, one line."""
        if isinstance(value, str) and value:
            return cls(value)
        if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
            raise ValueError(
                f"{where}: expected a policy's name, or a mapping such as {{name: snapkv, window: 64}}, found {value!r}"
            )
        own = {str(key): option for key, option in value.items() if key not in ("name", "budget")}
        return from_fields(cls, {**{k: value[k] for k in ("name", "budget") if k in value}, "options": own}, where)


def policy_entries(plain: Iterable[Any], where: str = "policies") -> tuple[PolicyEntry, ...]:
    """Entries from plain data (or entries, which stay as they are). Raises ValueError, one line."""
    return tuple(
        entry if isinstance(entry, PolicyEntry) else PolicyEntry.from_plain(entry, f"{where}[{i}]")
        for i, entry in enumerate(plain)
    )


def parse_policies(text: str) -> tuple[PolicyEntry, ...]:
    """Entries from a command line: the items of a YAML list, `full,namm,{name: snapkv, window: 64}`.

    Raises ValueError, one line.
    """
    try:
        items = yaml.safe_load(f"[{text}]")
    except yaml.YAMLError:
        raise ValueError(
            f"policies: {text!r} is no list of policies: write names and commas, such as "
            "full,namm,{name: snapkv, window: 64}"
        ) from None
    return policy_entries(items)
