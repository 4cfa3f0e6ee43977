"""The numbers of a generation under the names that MLflow shows them by. Sends nothing.

MLflow draws a section of charts for what stands before a name's last slash, in alphabetical order, and what has no
slash after all of them. So the names here are chosen for their order: fitness, validation against the full cache, the
final table (`heldout/`), kept, the search, single tasks, what it cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NAMES = {
    "fitness_mean": "fitness/mean",
    "fitness_best": "fitness/best",
    "fitness_std": "fitness/std",
    "mean_fitness": "fitness/search_mean",
    "full_fitness": "fitness/full",
    "validation_score": "fitness_validation/score",
    "validation_full": "fitness_validation/full_score",
    "validation_difference": "fitness_validation/difference",
    "validation_kept": "fitness_validation/kept",
    "validation_fitness": "fitness_validation/fitness",
    "validation_full_fitness": "fitness_validation/full_fitness",
    "kept": "kept/mean",
    "kept_candidates": "kept/candidates",
    "mean_score": "tasks/score",
    "full_score": "tasks/full_score",
}
"""Fields of a generation's record that have a name of their own; other numbers of it are `search/<field>`."""


def of_generation(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a generation's record, by name."""
    numbers = {key: value for key, value in record.items() if isinstance(value, int | float) and key != "generation"}
    metrics = {NAMES.get(key, f"search/{key}"): value for key, value in numbers.items()}
    metrics |= {f"kept/layer_{i}": kept for i, kept in enumerate(record["kept_layers"])}
    for field, group in {"tasks": "score", "base": "full_score", "normalised": "normalised"}.items():
        metrics |= {f"tasks/{group}/{task}": value for task, value in record[field].items()}
    return metrics
