"""A folder with a Decision Transformer: its weights in transformers' format, and the environments that it knows.

`config.json` and `model.safetensors` are those of a stock `DecisionTransformerModel`; `environments.json` describes
how the model sees each environment (`control.environments`). Only safetensors are read. Knows no memories and no tasks.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import DecisionTransformerConfig, DecisionTransformerModel
from transformers.utils import logging

from namm_core.config import from_mapping
from workers import models
from workers.config import ModelConfig
from workers.control.environments import Environment

ENVIRONMENTS = "environments.json"


def check(config: ModelConfig) -> dict[str, Environment]:
    """The folder's environments by name; reads no weights.

    Raises ValueError, one line, if the folder holds no such model, or not the weights that `config` asks for.
    """
    folder = Path(config.path)
    if not folder.is_dir():
        raise ValueError(f"model folder {config.path} does not exist; control models are folders, not of the Hub")
    further = (config.device_map, config.revision, config.gguf)
    if config.ntk_alpha != 1.0 or any(setting is not None for setting in further):
        raise ValueError(
            "a Decision Transformer has no rotary embedding, one device, no revision and no GGUF: leave them out"
        )
    for file in ("config.json", ENVIRONMENTS):
        if not (folder / file).is_file():
            raise ValueError(f"{config.path} is no folder of a Decision Transformer: {file} is missing")
    for file in models.weight_files(folder):
        if not (folder / file).is_file():
            raise ValueError(f"{config.path} lacks weights in safetensors format ({file})")
    found = models.weights_digest(config.path)
    if config.sha256 not in (None, found):
        raise ValueError(
            f"the weights in {config.path} are not those the job was written for (model.sha256 is "
            f"{config.sha256[:12]}..., found {found[:12]}...); set it to accept them"
        )
    try:
        plain = json.loads((folder / ENVIRONMENTS).read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / ENVIRONMENTS} is no JSON: {error}") from None
    return from_mapping(_Environments, plain, str(folder / ENVIRONMENTS)).environments


def load(config: ModelConfig) -> tuple[DecisionTransformerModel, dict[str, Environment]]:
    """The model, in evaluation mode on its device, and its environments by name.

    Raises ValueError, one line, if it cannot be loaded.
    """
    environments = check(config)
    logging.disable_progress_bar()
    try:
        settings = DecisionTransformerConfig.from_pretrained(config.path, local_files_only=True)
        settings._attn_implementation = None
        model = DecisionTransformerModel.from_pretrained(
            config.path,
            config=settings,
            dtype=getattr(torch, config.dtype),
            use_safetensors=True,
            local_files_only=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(f"the model {config.path} could not be loaded: {reason}") from None
    for name, about in environments.items():
        if about.state_at + len(about.mean) > settings.state_dim or about.steps > settings.max_ep_len:
            raise ValueError(f"{config.path}: {ENVIRONMENTS} and config.json disagree about {name}")
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.requires_grad_(False).eval().to(device), environments


def save(model: DecisionTransformerModel, environments: dict[str, Environment], folder: Path) -> None:
    """Writes a folder that `load` reads."""
    model.save_pretrained(folder)
    plain = dataclasses.asdict(_Environments(environments))
    (folder / ENVIRONMENTS).write_text(json.dumps(plain, indent=1) + "\n", "utf-8")


@dataclasses.dataclass(frozen=True)
class _Environments:
    """The content of `environments.json`."""

    environments: dict[str, Environment]
