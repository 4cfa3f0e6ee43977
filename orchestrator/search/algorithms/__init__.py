"""The searches, one file each; this package holds nothing else. `orchestrator.search.lookup` finds them by name.

A search is added by writing its file here, or into the folder `searches` of a plug-in: a class of the file's name
(underscores and case aside) that inherits from `orchestrator.search.base.AskAndTell`, its options in a dataclass of
its own. It is then `search.algorithm` in any job, and every test in tests/orchestrator/search/test_searches.py runs
on it.
"""
