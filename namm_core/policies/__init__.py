"""What can decide which cached tokens stay: one small file each, same interface (`base.Policy`)."""

from namm_core.policies.base import Policy, View
from namm_core.policies.full import Full
from namm_core.policies.h2o import H2O
from namm_core.policies.l2 import L2
from namm_core.policies.oracle import Oracle
from namm_core.policies.random import Random
from namm_core.policies.streaming import Streaming

__all__ = ["H2O", "L2", "Full", "Oracle", "Policy", "Random", "Streaming", "View"]
