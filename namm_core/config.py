"""All of a memory's numbers, and the strict reader that every typed configuration here goes through.

Knows nothing of tensors, tasks, models or files.
"""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from namm_core import plugins

SCORERS = "namm_core.scoring.scorers"
"""The plug-in package of scorers."""
FEATURES = "namm_core.scoring.features"
"""The plug-in package of features."""


@dataclass(frozen=True)
class NammConfig:
    """The numbers of one NAMM; the defaults are the paper's (arXiv 2410.13166, section 3 and appendix A)."""

    update_interval: int = 512
    """Tokens fed between two updates of the memory; a multiple of `hop`."""
    n_fft: int = 32
    """Window of the short-time Fourier transform, in queries."""
    hop: int = 16
    """Queries between two frames; half of `n_fft`."""
    ema: float = 0.99
    """Decay of the moving average, per query."""
    age_dim: int = 8
    """Width of the age embedding (half sines, half cosines)."""
    age_max_period: int = 50_000
    """Longest period of the age embedding, in tokens / (2 pi)."""
    hidden: int = 32
    """Width of the backward attention's queries, keys and values."""
    scorer: str = "bam"
    """The network that scores a token, a file of `namm_core/scoring/scorers`: `bam`, backward attention, or `mlp`,
    which sees each token alone."""
    selection: Literal["ragged", "padded", "budget"] = "ragged"
    """`ragged`: a head keeps its own positives; `padded`: every head keeps as many as the fullest one; `budget`: the
    highest scores stay, as many as a budget allows that is given where the memory is used."""
    features: tuple[str, ...] = ("age", "spectrum")
    """What the scorer sees of a token, files of `namm_core/scoring/features`, in order; the default is the paper's."""
    standardised: Literal["head", "layer"] = "head"
    """Over whose tokens features of no fixed scale are standardised: a head's, or those of all heads of a layer."""
    over: Literal["head", "layer"] = "head"
    """With `budget`: whether each head keeps as many, or all heads of a layer share what they have together."""
    sinks: int = 0
    """With `budget`: first tokens that always stay."""
    recent: int = 0
    """With `budget`: newest tokens that always stay."""
    depths: int = 0
    """With `budget`: numbers at the front of theta that say how the layers share it, at as many depths, evenly spread
    from the first layer to the last; 0: each layer has as much."""
    heads: int = 0
    """With `depths` as many as the model has layers: numbers at each, one for every key-value head, so that each head
    has its own share. They belong to that model: on one of another shape all heads have as much. 0: a layer's heads
    have as much."""
    pool: int = 1
    """Tokens, odd, over which scores are averaged: each with its neighbours among those that its head holds."""

    def __post_init__(self) -> None:
        for name in ("update_interval", "n_fft", "hop", "age_dim", "age_max_period", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.n_fft != 2 * self.hop:
            raise ValueError(f"n_fft must be twice hop, not {self.n_fft} with hop {self.hop}")
        if self.update_interval % self.hop:
            raise ValueError(f"update_interval must be a multiple of hop ({self.hop}), not {self.update_interval}")
        if not 0.0 < self.ema < 1.0:
            raise ValueError(f"ema must lie between 0 and 1, not {self.ema}")
        if self.age_dim % 2:
            raise ValueError(f"age_dim must be even, not {self.age_dim}")
        if self.selection not in ("ragged", "padded", "budget"):
            raise ValueError(f"selection must be ragged, padded or budget, not {self.selection!r}")
        if self.sinks < 0 or self.recent < 0:
            raise ValueError(f"sinks and recent are at least 0, not {self.sinks} and {self.recent}")
        if self.depths < 0 or (self.depths and self.selection != "budget"):
            raise ValueError(f"depths is at least 0, and 0 without a budget to share, not {self.depths}")
        if self.heads < 0 or (self.heads and (not self.depths or self.over == "layer")):
            raise ValueError(f"heads is at least 0, and 0 without depths or with over: layer, not {self.heads}")
        if self.pool < 1 or self.pool % 2 == 0:
            raise ValueError(f"pool must be odd, not {self.pool}")
        if not self.features or len(set(self.features)) < len(self.features):
            raise ValueError(f"features must name at least one, and none twice, not {list(self.features)}")
        for feature in self.features:
            plugins.check(FEATURES, feature, "feature")
        plugins.check(SCORERS, self.scorer, "scorer")

    @property
    def frequencies(self) -> int:
        """Magnitudes in a frame: n_fft / 2 + 1."""
        return self.n_fft // 2 + 1

    @property
    def embedding(self) -> int:
        """Width of a token's embedding: that of all features together."""
        return sum(plugins.find_class(FEATURES, name, "feature")().width(self) for name in self.features)


@dataclass(frozen=True)
class Range:
    """Which finite values a setting may have, said where it is declared: `Annotated[int, Range(least=1)]`."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    """Bound that is not allowed itself."""
    below: float | None = None
    """Bound that is not allowed itself."""

    def __contains__(self, value: float) -> bool:
        return (
            math.isfinite(value)
            and (self.least is None or self.least <= value)
            and (self.most is None or value <= self.most)
            and (self.above is None or self.above < value)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self.least is not None and self.most is not None:
            return f"lie in {self.least} to {self.most}"
        if self.above is not None and self.below is not None:
            return f"lie between {self.above} and {self.below}"
        bounds = {"at least": self.least, "at most": self.most, "above": self.above, "below": self.below}
        return "be " + " and ".join(f"{word} {bound}" for word, bound in bounds.items() if bound is not None)


class Ranged:
    """A dataclass whose numbers must lie in the `Range`s that their annotations name; None is always allowed.

    Raises ValueError, one line, from `__post_init__`, however the object is made; a dataclass with checks of its own
    calls `super().__post_init__()`.
    """

    def __post_init__(self) -> None:
        for name, allowed in _ranges(type(self)).items():
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise ValueError(f"{name} must {allowed}, not {value}")


def _ranges(cls: type) -> dict[str, Range]:
    hints = typing.get_type_hints(cls, include_extras=True).items()
    return {name: r for name, hint in hints for r in getattr(hint, "__metadata__", ()) if isinstance(r, Range)}


class Readable:
    """A setting that says itself how it is read: one whose type depends on what it holds, or that has a short form."""

    @classmethod
    def from_plain(cls, value: Any, where: str) -> Any:
        """The setting, from plain data; `where`: its path, for the message. Raises ValueError, one line."""
        return from_fields(cls, value, where)


def from_mapping(cls: type, mapping: Mapping[str, Any], where: str = "config") -> Any:
    """Builds the dataclass `cls` from plain data (YAML, JSON), nested dataclasses, lists and choices included.

    A `Readable` is read as it says itself, any other by its fields (`from_fields`, which says what is raised).
    """
    return cls.from_plain(mapping, where) if issubclass(cls, Readable) else from_fields(cls, mapping, where)


def from_fields(cls: type, mapping: Mapping[str, Any], where: str = "config") -> Any:
    """Builds the dataclass `cls` from plain data with a key for each of its fields that is given.

    Raises ValueError, one line, for an unknown key (names the nearest known one), a missing key or a value
    of another type; `where` is the path of `mapping` in the file, for the message.
    """
    if not isinstance(mapping, Mapping):
        raise ValueError(f"{where}: expected a mapping of settings, found {type(mapping).__name__}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    values = {}
    for key, value in mapping.items():
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1, cutoff=0.0)
            raise ValueError(f"{where}: unknown key {key!r}; did you mean {near[0]!r}? Known: {', '.join(fields)}")
        values[key] = _convert(hints[key], value, f"{where}.{key}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ValueError(f"{where}: the key {name!r} is missing")
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        problems = []
        for choice in arguments:
            if choice is type(None):
                continue
            try:
                return _convert(choice, value, where)
            except ValueError as error:
                problems.append(str(error))
        raise ValueError(problems[0])
    if origin is Literal:
        if value not in arguments:
            near = difflib.get_close_matches(str(value), [str(a) for a in arguments], n=1, cutoff=0.0)[0]
            known = ", ".join(map(str, arguments))
            raise ValueError(f"{where}: {value!r} is not known; did you mean {near!r}? Known: {known}")
        return value
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where}: expected a list, found {value!r}")
        return origin(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ValueError(f"{where}: expected a mapping, found {value!r}")
        return {str(k): _convert(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(hint, type) and (dataclasses.is_dataclass(hint) or issubclass(hint, Readable)):
        return value if isinstance(value, hint) else from_mapping(hint, value, where)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):  # YAML reads 1e-3 as text
        try:
            return float(value)
        except ValueError:
            pass
    if hint is int and isinstance(value, str) and value.replace("_", "").isdigit():
        return int(value)
    if type(value) is hint:
        return value
    if hint is str and isinstance(value, bool | int | float | datetime.date):
        raise ValueError(
            f"{where}: expected text, found {value!r}, as YAML reads it: put the text in quotes, twice for a shell"
        )
    raise ValueError(f"{where}: expected {getattr(hint, '__name__', hint)}, found {value!r}")


def value_of(hint: Any, value: Any, where: str) -> Any:
    """Plain data (YAML, JSON) as the type `hint`; where: its path, for the message. Raises ValueError, one line."""
    return _convert(hint, value, where)
