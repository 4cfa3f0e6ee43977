"""What can decide which cached tokens stay: one small file for each policy, all behind one interface.

A policy is added by writing its file: a module of this package that holds a class of its name (underscores and case
aside), usually a dataclass on a base of `namm_core.policy`. It is then known to everything that takes a policy by
name, and `from namm_core.policies import ThatClass` finds it. Modules are imported when first used, so that names can
be listed without torch.
"""

import dataclasses
import difflib
import inspect
import typing
from collections.abc import Mapping
from typing import Any, NamedTuple

from namm_core import plugins
from namm_core.config import value_of

_GIVEN = ("budget", "update_interval", "relevant")
"""What whoever makes a policy must supply (`relevant`: to the oracle); all other fields are its options."""


class Option(NamedTuple):
    """One option of a policy."""

    default: Any
    type: Any
    """Its type, as annotated: a class, or a choice (`typing.Literal`)."""


def names() -> list[str]:
    """Names of all policies, in alphabetical order."""
    return plugins.modules(__name__)


def named(name: str) -> Any:
    """The policy in `<name>.py`. Raises ValueError, one line, for an unknown name."""
    return plugins.find_class(__name__, name, "policy")


def options(name: str) -> dict[str, Option]:
    """The options of a policy, without its budget and update interval. Raises ValueError for an unknown name."""
    policy = named(name)
    types = typing.get_type_hints(policy if dataclasses.is_dataclass(policy) else policy.__init__)
    found = {}
    for key, parameter in inspect.signature(policy).parameters.items():
        if key not in _GIVEN:
            found[key] = Option(parameter.default, types.get(key, Any))
    return found


def settings(name: str) -> tuple[dict[str, Any], ...]:
    """Options of a policy that are worth trying, its defaults ({}) first. Raises ValueError for an unknown name."""
    return getattr(named(name), "settings", ({},))


def check(name: str, given: Mapping[str, Any], budget: float | int | None = None) -> dict[str, Any]:
    """The options of a policy as its constructor takes them, from plain values (YAML).

    budget: the one that is asked for, if any. Raises ValueError, one line, for an unknown policy, an unknown option (it
    names the nearest one), a value of another type or out of range, and a budget that the policy does not take.
    """
    known, values = options(name), {}
    for key, value in given.items():
        if key not in known:
            if not known:
                raise ValueError(f"policy {name} has no options: unknown option {key!r}")
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)[0]
            raise ValueError(f"policy {name}: unknown option {key!r}; did you mean {near!r}? Known: {', '.join(known)}")
        values[key] = value_of(known[key].type, value, f"policy {name}: {key}")
    policy = named(name)
    if budget is not None and not policy.takes_budget:
        raise ValueError(f"policy {name} takes no budget: it decides itself how much it keeps")
    supplied: dict[str, Any] = {"relevant": []} if "relevant" in inspect.signature(policy).parameters else {}
    if policy.takes_budget:
        supplied["budget"] = 1 if budget is None else budget
    try:
        policy(**supplied, **values)
    except ValueError as error:
        raise ValueError(f"policy {name}: {error}") from None
    return values


def __getattr__(name: str) -> type:
    for module in names():
        if plugins.plain(module) == name.lower():
            found = vars(plugins.load(__name__, module, "policy")).get(name)
            if isinstance(found, type):
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
