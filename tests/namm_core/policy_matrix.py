"""The matrix of policies: every file in `namm_core/policies`, and the NAMM, each as a function of its interval."""

from __future__ import annotations

from functools import partial

import torch

from namm_core import Namm, NammConfig, policies
from namm_core.policies import ExpectedAttention, Oracle, SnapKV

INTERVAL = 32


def scattered_namm(scorer: str, interval: int = INTERVAL) -> Namm:
    config = NammConfig(update_interval=interval, scorer=scorer)
    size = Namm(config).num_parameters
    return Namm(config, torch.randn(size, generator=torch.Generator().manual_seed(3)) * 0.1)


BUDGETED = [name for name in policies.names() if policies.named(name).takes_budget]
POLICIES = {
    "namm": partial(scattered_namm, "bam"),
    "namm-mlp": partial(scattered_namm, "mlp"),
    "oracle": lambda interval=INTERVAL: Oracle([torch.tensor([5, 17, 60])], interval),
    **{name: lambda interval=INTERVAL, name=name: policies.named(name)(20, interval) for name in BUDGETED},
    "snapkv-avg": lambda interval=INTERVAL: SnapKV(20, interval, window=8, pooling="avg"),
    "expected_attention-0.3": lambda interval=INTERVAL: ExpectedAttention(0.3, interval),
}
for name in policies.names():  # those of neither kind need no more than an interval
    POLICIES.setdefault(name, lambda interval=INTERVAL, name=name: policies.named(name)(update_interval=interval))
