"""Which policies a comparison has, as a person writes them: a name, or a name with options and a size.

    policies: [full, namm, {name: snapkv, window: 64, budget: 0.2}, {name: l2, best: true}]
    --policies "full,namm,{name: snapkv, window: 64, budget: 0.2}"

Knows how entries are written and labelled; which policies and options there are is known by `namm_core.policies`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import yaml

from namm_core.config import Range, Ranged, Readable, from_fields

KEYS = ("name", "budget", "best")
"""Keys of an entry that are no options of the policy."""


@dataclass(frozen=True)
class PolicyEntry(Ranged, Readable):
    """One policy of a comparison."""

    name: str
    """`full`, `namm`, `oracle`, or a module of `namm_core.policies`."""
    options: dict[str, Any] = field(default_factory=dict)
    """The policy's own options, plain values, in the order in which they were given."""
    budget: Annotated[float | None, Range(above=0, below=1)] = None
    """Kept fraction that its size is fixed at; None: the size at which policies are compared, the NAMM's own."""
    best: bool = False
    """Whether the options that are not given are chosen on validation samples, among the policy's `settings`."""

    @property
    def label(self) -> str:
        """Name of its row in tables: `snapkv`, `snapkv(window=64)`, `snapkv(window=64, budget=0.2)`; as long as its
        options are open, `snapkv(best)`."""
        given = [f"{key}={value}" for key, value in self.options.items()]
        given += [] if self.budget is None else [f"budget={self.budget:g}"]
        given += ["best"] if self.best else []
        return self.name + (f"({', '.join(given)})" if given else "")

    @property
    def plain(self) -> str | dict[str, Any]:
        """The entry as it is written in YAML: the name, or a mapping. `from_plain` reads it back."""
        fixed: dict[str, Any] = {} if self.budget is None else {"budget": self.budget}
        fixed |= {"best": True} if self.best else {}
        return {"name": self.name, **self.options, **fixed} if self.options or fixed else self.name

    @classmethod
    def from_plain(cls, value: Any, where: str) -> PolicyEntry:
        """Reads a name, or a mapping of `name`, `budget`, `best` and the policy's options.

        Raises ValueError, one line.
        """
        if isinstance(value, str) and value:
            return cls(value)
        if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
            raise ValueError(
                f"{where}: expected a policy's name, or a mapping such as {{name: snapkv, window: 64}}, found {value!r}"
            )
        own = {str(key): option for key, option in value.items() if key not in KEYS}
        return from_fields(cls, {**{k: value[k] for k in KEYS if k in value}, "options": own}, where)


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
