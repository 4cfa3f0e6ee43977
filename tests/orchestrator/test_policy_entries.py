"""Policies as a person writes them: names, options, fixed sizes; in YAML and on a command line."""

from __future__ import annotations

import pytest

from orchestrator.policy_entries import PolicyEntry, parse_policies, policy_entries


def test_a_command_line_says_what_yaml_says():
    text = "full,namm, {name: snapkv, window: 64},{name: h2o, budget: 0.2}"
    plain = ["full", "namm", {"name": "snapkv", "window": 64}, {"name": "h2o", "budget": 0.2}]
    entries = parse_policies(text)
    assert entries == policy_entries(plain) == policy_entries(entries)
    assert [entry.plain for entry in entries] == plain
    assert [entry.label for entry in entries] == ["full", "namm", "snapkv(window=64)", "h2o(budget=0.2)"]
    assert entries[3] == PolicyEntry("h2o", {}, 0.2)


def test_a_label_has_the_options_in_the_order_in_which_they_were_given():
    (entry,) = policy_entries([{"sinks": 4, "budget": 1e-2, "name": "snapkv", "window": 64, "over": "layer"}])
    assert entry.label == "snapkv(sinks=4, window=64, over=layer, budget=0.01)"
    assert entry.options == {"sinks": 4, "window": 64, "over": "layer"} and entry.budget == 0.01


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("full,{name: snapkv", "is no list of policies: write names and commas"),
        (
            "full,7",
            r"policies\[1\]: expected a policy's name, or a mapping .*found 7",
        ),
        ("{window: 64}", r"policies\[0\]: expected a policy's name"),
        ("{name: h2o, budget: many}", r"policies\[0\].budget: expected float, found 'many'"),
        ("{name: h2o, budget: 0}", r"policies\[0\]: budget must lie between 0 and 1, not 0"),
    ],
)
def test_what_is_no_policy_is_one_clear_line(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_policies(text)
    assert "\n" not in str(caught.value)
