"""The subcommands of `namm`: one file each, found by its name, with a `command`. Here: arguments that several share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from orchestrator.policy_entries import PolicyEntry, parse_policies

Command = TypeVar("Command", bound=Callable[..., Any])


class Fractions(click.ParamType):
    """Kept fractions, separated by commas; `none` is none of them."""

    name = "fractions"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        try:
            return () if value == "none" else tuple(float(part) for part in value.split(",") if part.strip())
        except ValueError:
            self.fail(f"{value!r} are no fractions: write them as 0.1,0.2,0.5", param, ctx)


class Policies(click.ParamType):
    """Policies as a job's `evaluation.policies` has them, in YAML: `h2o,{name: snapkv, window: 64}`."""

    name = "policies"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[PolicyEntry, ...]:
        try:
            return parse_policies(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def overrides(command: Command) -> Command:
    """Adds the argument `overrides`: `key=value` words that may stand before, between and behind options."""
    return click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")(command)


def listed(budgets: tuple[float, ...]) -> str:
    """Fractions as one writes them on the command line."""
    return ",".join(f"{budget:g}" for budget in budgets)
