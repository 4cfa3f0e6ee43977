"""Policies by name: how they are found, which budget and options they take, and what is refused in one line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from namm_core import Namm, policies
from namm_core.policies import H2O, ExpectedAttention
from namm_core.protocols import Policy
from tests.namm_core.policy_matrix import BUDGETED, INTERVAL, POLICIES


@pytest.mark.parametrize(
    "budget, message",
    [
        (0, "at least 1, not 0"),
        (-3, "at least 1, not -3"),
        (True, "not True"),
        ("20", "not '20'"),
        (0.0, "above 0 and at most at 1, not 0.0"),
        (20.0, "not 20.0 .tokens are an int"),
        (float("nan"), "not nan"),
        (torch.tensor([5, 0]), "at least 1, not 0"),
        (torch.tensor([0.5, 1.5]), "not 1.5"),
        (torch.tensor([True]), "not torch.bool"),
        (torch.tensor(5), "shape .rows,., not"),
    ],
)
@pytest.mark.parametrize("name", BUDGETED)
def test_what_is_no_budget_is_refused(name, budget, message):
    with pytest.raises(ValueError, match=message):
        policies.named(name)(budget)


@pytest.mark.parametrize(
    "name, wrong",
    [
        ("h2o", {"recent": 1.5}),
        ("streaming", {"sinks": -1}),
        ("snapkv", {"window": 0}),
        ("snapkv", {"kernel": 4}),
        ("snapkv", {"pooling": "sum"}),
        ("expected_attention", {"future": 0}),
        ("expected_attention", {"epsilon": -0.1}),
        ("l2", {"update_interval": 0}),
    ],
)
def test_numbers_out_of_range_are_refused(name, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        policies.named(name)(20, **wrong)


def test_every_member_of_the_interface_is_there():
    """Declared for every policy: nobody asks with `hasattr`."""
    members = {*Policy.__annotations__, *(name for name in vars(Policy) if not name.startswith("_"))}
    assert {"takes_budget", "advances", "needs_queries", "rows", "watch", "keep", "summarise"} <= members
    for name, make in POLICIES.items():
        policy = make()
        assert all(hasattr(policy, member) for member in members), name
    assert {"full", "oracle"} <= {name for name in policies.names() if not policies.named(name).takes_budget}
    assert not Namm.takes_budget


@pytest.mark.parametrize("name", policies.names())
def test_what_a_policy_says_of_itself_is_what_its_constructor_does(name):
    policy = policies.named(name)
    given = {} if name != "oracle" else {"relevant": [torch.tensor([5])]}
    if policy.takes_budget:
        assert policy(budget=20, update_interval=INTERVAL, **given).budget == 20
        with pytest.raises(TypeError):
            policy(update_interval=INTERVAL, **given)
    else:
        with pytest.raises(TypeError):
            policy(budget=20, update_interval=INTERVAL, **given)
        with pytest.raises(ValueError, match=f"policy {name} takes no budget"):
            policies.check(name, {}, budget=0.2)
    for key, option in policies.options(name).items():
        assert key not in ("budget", "update_interval", "relevant")
        assert policies.check(name, {key: option.default}) == {key: option.default}


def test_options_are_found_in_a_policys_own_fields():
    assert {name: option.default for name, option in policies.options("snapkv").items()} == {
        "whole_layers": 0,
        "over": "head",
        "sinks": 0,
        "recent": 0,
        "window": 32,
        "kernel": 7,
        "pooling": "max",
    }
    assert policies.options("snapkv")["window"].type is int
    assert list(policies.options("oracle")) == ["sinks"] and not policies.options("full")
    values = policies.check("expected_attention", {"sinks": 2, "epsilon": "1e-3"}, budget=0.2)  # as YAML reads 1e-3
    assert values == {"sinks": 2, "epsilon": 0.001} and policies.named("expected_attention")(0.2, INTERVAL, **values)


@pytest.mark.parametrize(
    "name, given, budget, message",
    [
        (
            "snapkv",
            {"windw": 64},
            None,
            "^policy snapkv: unknown option 'windw'; did you mean 'window'. Known: whole_layers, over,",
        ),
        ("snapkv", {"budget": 64}, None, "^policy snapkv: unknown option 'budget'"),  # which has a key of its own
        ("full", {"window": 64}, None, "^policy full has no options: unknown option 'window'$"),
        ("l2", {"over": "model"}, None, "^policy l2: over: 'model' is not known; did you mean"),
        ("l2", {"recent": 1.5}, None, "^policy l2: recent as a share of the budget lies in 0 to 1"),
        ("l2", {"recent": -1}, None, "^policy l2: recent is an integer of at least 0"),
        ("l2", {"whole_layers": -1}, None, "^policy l2: whole_layers is an integer of at least 0"),
        ("snapkv", {"window": "wide"}, None, "^policy snapkv: window: expected int, found 'wide'$"),
        ("snapkv", {"window": 0}, None, "^policy snapkv: window is an integer of at least 1, not 0$"),
        ("snapkv", {"pooling": "sum"}, None, "^policy snapkv: pooling: 'sum' is not known; did you mean"),
        ("oracle", {"sinks": "many"}, None, "^policy oracle: sinks: expected int"),
        ("streaming", {}, 1.5, "^policy streaming: a budget as a fraction"),
        ("full", {}, 0.5, "^policy full takes no budget"),
        ("snapvk", {}, None, "unknown policy 'snapvk'; did you mean 'snapkv'"),
    ],
)
def test_options_that_do_not_fit_are_one_line(name, given, budget, message):
    with pytest.raises(ValueError, match=message) as error:
        policies.check(name, given, budget)
    assert "\n" not in str(error.value)


def test_a_policy_from_a_folder_outside_has_its_options_too(tmp_path):
    (tmp_path / "every_other.py").write_text(
        "from dataclasses import dataclass\n"
        "from namm_core import BasePolicy\n"
        "@dataclass\n"
        "class EveryOther(BasePolicy):\n"
        "    update_interval: int = 512\n"
        "    step: int = 2\n"
        "    def keep(self, state, view):\n"
        "        return view.positions % self.step == 1\n"
    )
    (tmp_path / "use.py").write_text(
        "from pathlib import Path\n"
        "from namm_core import plugins, policies\n"
        "plugins.extend('namm_core.policies', Path(__file__).parent)\n"
        "assert policies.check('every_other', {'step': 3}) == {'step': 3}\n"
        "assert policies.named('every_other')(step=3).step == 3\n"
        "from namm_core.policies import EveryOther\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(policies.__file__).parents[2])}
    subprocess.run([sys.executable, "use.py"], cwd=tmp_path, env=environment, check=True)


def test_policies_are_found_by_their_files():
    assert {"full", "h2o", "tova", "snapkv", "keydiff", "expected_attention", "random"} <= set(policies.names())
    assert policies.named("expected_attention") is ExpectedAttention and policies.named("h2o") is H2O
    with pytest.raises(ValueError, match="unknown policy 'snapvk'; did you mean 'snapkv'. Known: expected_attention"):
        policies.named("snapvk")
    with pytest.raises(ValueError, match="unknown policy 'base'"):
        policies.named("base")
    with pytest.raises(ImportError, match="cannot import name 'h2O'"):
        from namm_core.policies import h2O  # noqa: F401


def test_a_policy_is_added_by_writing_its_file(tmp_path):
    """In a copy of the package, where nothing else is touched; names are listed without torch."""
    shutil.copytree(Path(policies.__file__).parents[1], tmp_path / "namm_core")
    (tmp_path / "namm_core" / "policies" / "odd_ones.py").write_text(
        "from namm_core.policy import BasePolicy\n"
        "class OddOnes(BasePolicy):\n"
        "    def keep(self, state, view):\n"
        "        return view.positions % 2 == 1\n"
    )
    (tmp_path / "use.py").write_text(
        "import sys\n"
        "from namm_core import policies\n"
        "assert 'odd_ones' in policies.names() and 'torch' not in sys.modules\n"
        "from namm_core.policies import OddOnes\n"
        "assert policies.named('odd_ones') is OddOnes\n"
    )
    subprocess.run([sys.executable, "use.py"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""}, check=True)
