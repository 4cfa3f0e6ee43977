"""Networks that score a cached token: one file for each, which holds a class of its name (case aside).

`namm_core.scoring.base_scorer` is their base; `memory.scorer` in a job's configuration names one.
"""
