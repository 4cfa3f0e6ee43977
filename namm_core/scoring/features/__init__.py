"""What a scorer sees of a cached token: one file for each feature, which holds a class of its name.

`namm_core.scoring.base_feature` is their base; `memory.features` in a job's configuration names them, in order.
"""
