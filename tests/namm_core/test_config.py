"""The typed reader's declared ranges, and settings that say themselves how they are read."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated

import pytest

from namm_core.config import Range, Ranged, Readable, from_fields, from_mapping


@dataclass(frozen=True)
class Numbers(Ranged):
    count: Annotated[int, Range(least=1)] = 1
    share: Annotated[float, Range(above=0, below=1)] = 0.5
    step: Annotated[float, Range(above=0)] = 1.0
    seed: Annotated[int, Range(least=0, most=9)] = 0
    limit: Annotated[int | None, Range(least=2)] = None


@dataclass(frozen=True)
class Outer:
    numbers: Numbers = Numbers()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 0}, "count must be at least 1, not 0"),
        ({"share": 1.0}, "share must lie between 0 and 1, not 1.0"),
        ({"share": 0}, "share must lie between 0 and 1, not 0"),
        ({"step": 0.0}, "step must be above 0, not 0.0"),
        ({"step": math.nan}, "step must be above 0, not nan"),
        ({"step": math.inf}, "step must be above 0, not inf"),
        ({"seed": 10}, "seed must lie in 0 to 9, not 10"),
        ({"limit": 1}, "limit must be at least 2, not 1"),
    ],
)
def test_a_number_outside_its_range_is_refused_however_the_settings_are_made(changes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Numbers(**changes)
    with pytest.raises(ValueError, match=f"^{message}"):
        dataclasses.replace(Numbers(), **changes)
    with pytest.raises(ValueError, match=f"^job.numbers: {message}"):
        from_mapping(Outer, {"numbers": changes}, "job")


def test_bounds_that_are_allowed_are_allowed():
    from_mapping(Numbers, {"count": 1, "seed": 9, "limit": None, "share": "1e-9"})


@dataclass(frozen=True)
class Named(Readable):
    name: str
    size: int = 0

    @classmethod
    def from_plain(cls, value, where):
        return from_fields(cls, {"name": value} if isinstance(value, str) else value, where)


@dataclass(frozen=True)
class Several:
    names: tuple[Named, ...]


def test_a_setting_may_have_a_short_form():
    read = from_mapping(Several, {"names": ["a", {"name": "b", "size": 2}, Named("c")]}, "job")
    assert read == Several((Named("a"), Named("b", 2), Named("c")))
    with pytest.raises(ValueError, match=r"job.names\[1\]: unknown key 'sise'; did you mean 'size'"):
        from_mapping(Several, {"names": ["a", {"name": "b", "sise": 2}]}, "job")
