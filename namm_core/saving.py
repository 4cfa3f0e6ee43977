"""A NAMM in a folder: `config.json`, `model.safetensors` and the code that travels with them.

Knows the layout of such a folder, here and on the Hugging Face Hub; knows nothing of what the numbers do.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from namm_core import sharing
from namm_core.config import NammConfig, from_mapping
from namm_core.statistics import FeatureStatistics


def write(
    folder: Path, config: NammConfig, theta: Tensor, statistics: FeatureStatistics | None, card: str | None = None
) -> None:
    """Writes the folder, each file whole or not at all; see `Namm.save_pretrained`. theta: (N,) or (rows, N)."""
    numbers = {"theta": theta.float().cpu().contiguous()}
    carried = {}  # what `custom_generate` reads: the same numbers, the count beside the configuration
    if statistics is not None:
        numbers["statistics.mean"] = statistics.mean.contiguous()
        numbers["statistics.var"] = statistics.var.contiguous()
        carried["statistics.count"] = statistics.count
    plain = {name: tensor.numpy().astype("<f4").tobytes() for name, tensor in numbers.items()}
    if statistics is not None:
        numbers["statistics.count"] = torch.tensor(statistics.count, dtype=torch.float64)
    files = {
        "config.json": (json.dumps({"model_type": "namm", **dataclasses.asdict(config)}, indent=2) + "\n").encode(),
        "model.safetensors": save(numbers, metadata={"format": "pt"}),
    }
    if theta.ndim == 1 or len(theta) == 1:
        code = sharing.custom_generate({**dataclasses.asdict(config), **carried}, plain)
        files |= {f"custom_generate/{name}": content for name, content in code.items()}
    if card is not None:
        files["README.md"] = card.encode()
    sharing.write(folder, files)


def read(path: str | Path) -> tuple[NammConfig, Tensor, FeatureStatistics | None]:
    """Configuration, theta and statistics of a folder, or of a repository of the Hub, that `write` wrote.

    Raises ValueError, one line, when files are missing or damaged.
    """
    folder = Path(path)
    if not folder.is_dir():
        folder = _download(str(path))
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is no saved NAMM: {name} is missing")
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        config.pop("model_type", None)
        tensors = load_file(folder / "model.safetensors")
    except Exception as error:  # json and safetensors each have error types of their own
        raise ValueError(f"{folder} is no saved NAMM: {error}") from None
    if "theta" not in tensors:
        raise ValueError(f"{folder}/model.safetensors holds no tensor named theta")
    try:
        for name, tensor in tensors.items():
            if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
                raise ValueError(f"model.safetensors: {name} holds what is no finite number")
        statistics = None
        if "statistics.mean" in tensors:
            for name in ("statistics.var", "statistics.count"):
                if name not in tensors:
                    raise ValueError(f"model.safetensors holds no tensor named {name}")
            count = float(tensors["statistics.count"])
            statistics = FeatureStatistics(tensors["statistics.mean"], tensors["statistics.var"], count)
        return from_mapping(NammConfig, config, f"{folder}/config.json"), tensors["theta"], statistics
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def _download(repository: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(repository, allow_patterns=["config.json", "model.safetensors"]))
    except HFValidationError:
        raise ValueError(f"{repository}: no such folder") from None
    except Exception as error:  # network, authentication, missing repository: all one question to the user
        reason = str(error).splitlines()[0]
        raise ValueError(f"{repository} is no folder and could not be fetched from the Hub: {reason}") from None
