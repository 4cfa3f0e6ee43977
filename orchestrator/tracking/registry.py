"""Makes a saved NAMM a version of a registered model in MLflow, with an alias and its figures.

Registering the same files of the same run again changes nothing, so a message may be sent twice. Knows nothing of
queues and retries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

DIGEST = "namm.sha256"
"""Tag of a version: the digest of its files."""


def digest(folder: Path) -> str:
    """SHA-256 over the configuration and weights of a saved NAMM, in hexadecimal. Raises OSError."""
    found = hashlib.sha256()
    for name in ("config.json", "model.safetensors"):
        found.update((folder / name).read_bytes())
    return found.hexdigest()


def register(
    client: MlflowClient,
    run_id: str,
    folder: Path,
    model: str,
    alias: str | None,
    tags: Mapping[str, str],
    description: str | None = None,
) -> str:
    """Registers the saved NAMM in `folder` as a version of `model`, gives it the alias, and returns its number.

    The files go into a folder of the run that is named after their digest, so that a version's files never change. If
    this run has a version with the same files, it is kept, and its tags and alias are set again.
    Raises MlflowException, or OSError when files cannot be read.
    """
    found = digest(folder)
    place = f"registered/{found[:16]}"
    try:
        client.create_registered_model(model)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = client.search_model_versions(f"name = '{model}' and run_id = '{run_id}'")
    known = next((version for version in versions if version.tags.get(DIGEST) == found), None)
    if known is None:
        client.log_artifacts(run_id, str(folder), place)
        labels = {**tags, DIGEST: found}
        known = client.create_model_version(
            model, f"runs:/{run_id}/{place}", run_id, tags=labels, description=description, await_creation_for=0
        )
    else:
        for name, value in tags.items():
            client.set_model_version_tag(model, known.version, name, value)
    if alias:
        client.set_registered_model_alias(model, alias, known.version)
    return str(known.version)
