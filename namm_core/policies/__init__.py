"""What can decide which cached tokens stay: one small file each, same interface (`base.Policy`).

A policy is added by writing `<name>.py` here with a class of that name (underscores left out, any capitals): it can be
imported from this package, named in a job, and is in every test of policies.
"""

import difflib
import importlib
import pkgutil

from namm_core.policies.base import Budgeted, Policy, View

_INTERFACE = {"Budgeted": Budgeted, "Policy": Policy, "View": View}


def names() -> tuple[str, ...]:
    """All policies that have a file here, in alphabetical order."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base"))


def named(name: str) -> type:
    """The class of policy `name`. Raises ValueError, naming the nearest known one."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown policy {name!r}; did you mean {near!r}? Known: {', '.join(names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    return next(v for k, v in vars(module).items() if k.lower() == name.replace("_", "") and isinstance(v, type))


def __getattr__(name: str) -> type:
    found = next((known for known in names() if known.replace("_", "") == name.lower()), None)
    policy = None if found is None else named(found)
    if policy is None or policy.__name__ != name:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return policy


def __dir__() -> list[str]:
    return sorted([*_INTERFACE, "named", "names", *(named(name).__name__ for name in names())])
