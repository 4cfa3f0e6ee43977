"""The subcommands of `namm`: one file each, found by its name, with a `command`. Here: what several share."""

from __future__ import annotations

import json
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


def as_json(command: Command) -> Command:
    """Adds the option `--json`, for programs that read what a command prints."""
    return click.option("--json", "plain", is_flag=True, help="as one JSON value, for programs")(command)


def print_json(value: Any) -> None:
    """Prints plain values as one JSON value; numbers that do not exist are null in them, never NaN."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def listed(budgets: tuple[float, ...]) -> str:
    """Fractions as one writes them on the command line."""
    return ",".join(f"{budget:g}" for budget in budgets)
