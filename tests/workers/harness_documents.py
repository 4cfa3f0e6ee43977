"""Documents for tasks of `lm_eval`, made from what a task's template and functions ask of one. Knows no metric."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import jinja2
from jinja2 import meta, nodes

LISTS = ("choices", "options", "options_list", "candidates", "choices_list", "endings", "multiple_choice_targets")
TEXT_LISTS = ("answers", "outputs", "targets", "references", "aliases", "gold_answers", "possible_answers")
METHODS = ("strip", "lower", "upper", "split", "replace", "rstrip", "lstrip", "title", "capitalize", "format", "items")
PROFILES: tuple[dict[str, Any], ...] = (
    {},
    {
        "answer": 1,
        "label": 1,
        "gold": 1,
        "answer_index": 1,
        "answer_idx": 1,
        "target": 1,
        "gold_index": 1,
        "correct": 1,
    },
    {"answer": "B", "label": "B", "target": "B", "answer_key": "B", "answerKey": "B"},
    {"answer": "Some steps. #### 4", "solution": "So it is \\boxed{4}.", "answer_number": 4, "target": "4"},
    {"answers": {"text": ["four"], "answer_start": [0]}, "choices": {"text": ["one", "four"], "label": ["A", "B"]}},
    {"answer": ["four", "4"], "answers": ["four", "4"], "target": ["four"], "targets": ["four"], "label": ["four"]},
    {"answer": {"value": "four", "aliases": ["4"], "normalized_aliases": ["4"]}, "translation": {}},
    {"ner_tags": [0, 1, 0], "tokens": ["Anna", "lives", "here"], "upos": [1, 2, 3]},
)
"""Values by a key's name, tried one after another where those by kind do not fit."""


def asked(config: dict[str, Any]) -> set[str]:
    """Names of the values that a task's templates and functions read from a document."""
    names: set[str] = set()
    for key, value in config.items():
        if isinstance(value, str):
            names |= _in_template(value)
        elif callable(value):
            names |= _in_source(value)
        elif key == "doc_to_choice" and isinstance(value, list):
            for one in value:
                names |= _in_template(one) if isinstance(one, str) else set()
    return {name for name in names if not name.startswith("_")}


def shapes(config: dict[str, Any]) -> dict[str, Any]:
    """Values whose parts a template asks for: a dictionary with those keys, or a list that is long enough."""
    found: dict[str, Any] = {}
    for text in (value for value in config.values() if isinstance(value, str)):
        try:
            tree = jinja2.Environment().parse(text)
        except jinja2.TemplateSyntaxError:
            continue
        for node in tree.find_all((nodes.Getattr, nodes.Getitem)):
            part = node.attr if isinstance(node, nodes.Getattr) else getattr(node.arg, "value", None)
            if not isinstance(node.node, nodes.Name) or part in METHODS:
                continue
            if isinstance(part, str):
                held = found.get(node.node.name)
                found[node.node.name] = (held if isinstance(held, dict) else {}) | {part: f"some {part}"}
            elif node.node.name not in found:
                found[node.node.name] = [f"choice {letter}" for letter in "ABCDEFGHIJ"]
    return found


def documents(config: dict[str, Any], count: int) -> Iterator[list[dict[str, Any]]]:
    """Lists of `count` documents, each list by another guess at what the values are."""
    demanded = _demanded(config.get("process_docs"))
    names = sorted(asked(config) | set(demanded))
    for profile in PROFILES:
        given = shapes(config) | profile | demanded
        yield [{name: _value(name, number, given) for name in names} for number in range(count)]


def _value(name: str, number: int, profile: dict[str, Any]) -> Any:
    if name in profile:
        return profile[name]
    if name in LISTS:
        return ["one", "two", "three", f"four{number}"]
    if name in TEXT_LISTS:
        return [f"four {number}", "4"]
    if name in ("idx", "id", "index", "length", "max_length", "num_answers", "answer_index", "seed", "depth"):
        return number
    return f"some {name} {number}"


def _in_template(text: str) -> set[str]:
    try:
        found = meta.find_undeclared_variables(jinja2.Environment().parse(text))
    except jinja2.TemplateSyntaxError:
        return set()
    return found | ({text} if text.isidentifier() else set())


def _in_source(function: Any) -> set[str]:
    counted = re.findall(r"f[\"'](\w+?_)\{\w+\}[\"']", _source(function))
    return {f"{name}{i}" for name in counted for i in range(10)} | set(
        re.findall(
            r"\b(?:\w*docs?|x|line|example|item|sample|row|ex)(?:\.get\(|\[)\s*[\"']([\w ]+)[\"']", _source(function)
        )
    )


def _demanded(function: Any) -> dict[str, str]:
    """Values that a function compares a document's with, to choose which it takes."""
    given = function.keywords if isinstance(function, partial) else {}
    found = {}
    for name, mark, text in re.findall(r"\[\s*[\"'](\w+)[\"']\s*\] == (f?[\"']|)([\w.{}]+)", _source(function)):
        found[name] = text if mark in ("'", '"') else text.format(**given) if mark else given.get(text, text)
    return found


def _source(function: Any) -> str:
    function = function.func if isinstance(function, partial) else function
    try:
        return inspect.getsource(inspect.getmodule(function) or function)
    except (OSError, TypeError):
        return ""
