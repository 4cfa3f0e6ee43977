"""What ties an evaluation to the run whose memory it evaluates, as tags that MLflow shows and searches by.

Knows run folders and tags; asks no store.
"""

from __future__ import annotations

import json
from pathlib import Path

from workers.masking import masked_url

NOTE = "mlflow.note.content"
"""The tag whose Markdown MLflow shows as a run's description."""
MEMORY_TAG = "namm.memory"
"""Tag of a run that evolved a memory and of all that evaluate it: the digest of the memory's files."""
PARENT = "mlflow.parentRunId"
"""The tag by which MLflow shows a run below another one."""


def ties(memory: str | Path, store: str) -> dict[str, str]:
    """Tags of a run that evaluates a saved memory: its digest, and the run that evolved it where that is known.

    memory: its folder, or a Hub id, which has neither; store: MLflow URI of the run that is tagged.
    """
    from orchestrator.tracking.registry import digest  # MLflow

    folder = Path(memory)
    try:
        found = {MEMORY_TAG: digest(folder)}
    except OSError:
        return {}
    try:
        evolved = json.loads((folder.parent / "mlflow.json").read_text("utf-8"))
        if evolved["uri"] == masked_url(store):
            found[PARENT] = str(evolved["run_id"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # a memory from elsewhere
    return found
