"""Where each value of a job comes from: its line and comment in the job file, the command line, or a default.

Knows YAML and dataclasses; knows nothing of what the values mean.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from orchestrator.policy_entries import PolicyEntry
from orchestrator.tracking.redaction import without_secrets
from workers.masking import masked_text

COMMAND_LINE = "command line"


@dataclasses.dataclass(frozen=True)
class Value:
    """One setting."""

    key: str
    """Dotted."""
    value: Any
    source: str
    """Line of the job file and what its comment says, `command line`, or the dataclass whose default it is."""
    given: bool
    """Whether the file or the command line has it."""


def values(spec: Any, text: str, overrides: list[str] | None = None) -> list[Value]:
    """All settings of the dataclass `spec`, in its order, without secrets; text: the job file it was read from."""
    given = dict(_given(text))
    replaced = {override.partition("=")[0] for override in overrides or []}

    def source(key: str, value: Any, owner: type) -> tuple[str, bool]:
        parts = key.split(".")
        for end in range(len(parts), 0, -1):  # a whole group may have been given at once
            prefix = ".".join(parts[:end])
            if prefix in replaced:
                return COMMAND_LINE, True
        if key in given:
            return given[key], True
        if value != _labels(_default(owner, parts[-1])):
            return "follows from other settings", True
        return f"default of {owner.__module__}.{owner.__qualname__}", False

    found = []
    for key, value, owner in _leaves(spec, "", type(spec)):
        where, is_given = source(key, value, owner)
        found.append(Value(key, without_secrets(value, key.rpartition(".")[2]), masked_text(where), is_given))
    return found


def _default(owner: type, name: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(owner)} if dataclasses.is_dataclass(owner) else {}
    if name not in fields:
        return ()
    field = fields[name]
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return () if field.default is dataclasses.MISSING else field.default


def _leaves(value: Any, key: str, owner: type) -> Iterator[tuple[str, Any, type]]:
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            inner = getattr(value, field.name)
            yield from _leaves(inner, f"{key}.{field.name}".lstrip("."), type(value))
    elif isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}", owner)
    elif isinstance(value, list | tuple) and any(isinstance(item, PolicyEntry) for item in value):
        yield key, _labels(value), owner  # a list of policies is one setting, however its items are written
    elif isinstance(value, list | tuple) and any(dataclasses.is_dataclass(item) for item in value):
        for i, inner in enumerate(value):
            yield from _leaves(inner, f"{key}.{i}", owner)
    else:
        yield key, value, owner


def _labels(value: Any) -> Any:
    """A tuple of policy entries by their labels; anything else as it is."""
    entries = isinstance(value, tuple) and all(isinstance(item, PolicyEntry) for item in value)
    return tuple(entry.label for entry in value) if entries else value


def _given(text: str) -> Iterator[tuple[str, str]]:
    """(dotted key, line and comment) of everything that a job file says."""
    lines = text.splitlines()
    root = yaml.compose(text, Loader=yaml.SafeLoader)

    def walk(node: yaml.Node, key: str, line: int) -> Iterator[tuple[str, str]]:
        comment = _comment(lines, line)
        if not comment and node.end_mark.line < len(lines) and not isinstance(node, yaml.MappingNode):
            comment = _split(lines[node.end_mark.line]) or ""  # of a list on several lines
        yield key, f"line {line + 1}" + (f": {comment}" if comment else "")
        if isinstance(node, yaml.MappingNode):
            for name, value in node.value:
                yield from walk(value, f"{key}.{name.value}", name.start_mark.line)
        elif isinstance(node, yaml.SequenceNode):
            for i, value in enumerate(node.value):
                yield from walk(value, f"{key}.{i}", value.start_mark.line)

    if isinstance(root, yaml.MappingNode):
        for name, value in root.value:
            yield from walk(value, name.value, name.start_mark.line)


def _comment(lines: list[str], line: int) -> str:
    """The comment on a line; or, where it has none, the comment lines right above it."""
    if own := _split(lines[line]):
        return own
    first = line
    while first > 0 and lines[first - 1].strip().startswith("#"):
        first -= 1
    # The file's own first lines are about the file.
    return " ".join(text.strip().lstrip("#").strip() for text in lines[first:line]) if first else ""


def _split(line: str) -> str | None:
    """The comment behind a line's setting; quoted text may hold a `#` too."""
    bare = re.sub(r"\"(\\.|[^\"])*\"|'[^']*'", lambda quoted: "_" * len(quoted.group()), line)
    found = re.search(r"(?<=\s)#", bare)
    return None if found is None or not bare[: found.start()].strip() else line[found.end() :].strip()
