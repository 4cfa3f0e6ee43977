"""Neural Attention Memory Models: attention in, what to forget out.

No Ray, no Redis, no tasks.
"""

from namm_core.cache import MemoryCache
from namm_core.config import NammConfig
from namm_core.namm import Namm, NammState, NammStep, StatisticsCollector
from namm_core.statistics import FeatureStatistics

__all__ = ["FeatureStatistics", "MemoryCache", "Namm", "NammConfig", "NammState", "NammStep", "StatisticsCollector"]
