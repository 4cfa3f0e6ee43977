"""What a worker makes of an evaluation that fails. (What it does when it is told to go: tests/orchestrator.)"""

from __future__ import annotations

import pytest
import torch

from benchmarks.waiting import WaitingEvaluator
from workers.actor import EvaluatorActor
from workers.config import EvaluatorConfig, ModelConfig
from workers.unit import Failure, PolicySpec, SampleRef, Unit

UNIT = Unit((PolicySpec("full"),), (SampleRef("topic", "train", 0),))


def gpu_is_full() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


class Broken(WaitingEvaluator):
    """Fails on one unit, in the way that it is given."""

    def __init__(self, fail) -> None:
        super().__init__(EvaluatorConfig(ModelConfig("none"), {"seconds": 0}))
        self.fail = fail

    def evaluate(self, unit):
        if unit == UNIT:
            self.fail()
        return super().evaluate(unit)


def answered(fail):
    worker = EvaluatorActor.__new__(EvaluatorActor)  # without its signal handler, which is a process's own
    worker._busy = worker._leaving = False
    worker.evaluator = Broken(fail)
    fine = Unit(UNIT.policies, (SampleRef("topic", "train", 1),))
    return worker.evaluate([UNIT, fine, UNIT]).outcomes


@pytest.mark.parametrize(
    "fail, kind",
    [
        (lambda: torch.empty(2**50), "memory"),
        (gpu_is_full, "memory"),
        (lambda: bytearray(2**62), "memory"),
        (lambda: torch.ones(2) @ torch.ones(3), "error"),
        (lambda: {}["no such sample"], "error"),
    ],
)
def test_a_failure_says_what_it_is_and_costs_only_its_own_unit(fail, kind):
    first, fine, last = answered(fail)
    assert isinstance(first, Failure) and first == last
    assert first.kind == kind and first.reason and "\n" not in first.reason
    assert fine[0][0].index == 1
