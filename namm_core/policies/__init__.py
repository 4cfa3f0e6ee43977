"""What can decide which cached tokens stay: one small file each, same interface (`base.Policy`).

A policy is added by writing its file: a module here that holds a class of its name (underscores and case aside). It is
then known to everything that takes a policy by name, and `from namm_core.policies import ThatClass` finds it. Modules
are imported when first used, so that names can be listed without torch.
"""

import difflib
import importlib
import pkgutil

_INTERFACE = ("Budgeted", "Policy", "State", "View")


def names() -> list[str]:
    """Names of all policies in this folder, in alphabetical order."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")


def named(name: str) -> type:
    """The policy in `<name>.py`. Raises ValueError, one line, for an unknown name."""
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown policy {name!r}; did you mean {near!r}? Known: {', '.join(known)}")
    found = _classes(name).get(_plain(name))
    if found is None:
        raise ValueError(f"unknown policy {name!r}: namm_core/policies/{name}.py holds no class of that name")
    return found


def _classes(module: str) -> dict[str, type]:
    content = vars(importlib.import_module(f"{__name__}.{module}"))
    return {_plain(key): value for key, value in content.items() if isinstance(value, type)}


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


def __getattr__(name: str):
    if name in _INTERFACE:
        return getattr(importlib.import_module(f"{__name__}.base"), name)
    for module in names():
        if _plain(module) == name.lower():
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_INTERFACE])
