"""Loading the frozen language model and its tokenizer, from a folder or from the Hub.

Knows nothing of memories or tasks.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.utils import logging

from workers.config import ModelConfig


def check(config: ModelConfig) -> None:
    """Raises ValueError, one line, when the model cannot be there; fetches no weights."""
    folder = Path(config.path)
    if not folder.is_dir():
        reason = "`make model` trains the small one"
        if config.path.count("/") == 1 and not config.path.startswith((".", "/")):  # owner/name: perhaps on the Hub
            try:
                AutoConfig.from_pretrained(config.path)
                return
            except (OSError, ValueError) as error:
                reason = f"and the Hub has none of this name to be had: {str(error).splitlines()[0]}"
        raise ValueError(f"model folder {config.path} does not exist; {reason}")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{config.path} is no model folder: config.json is missing")
    if config.sha256 is not None and weights_digest(config.path) != config.sha256:
        raise ValueError(
            f"the weights in {config.path} are not those the job was written for (model.sha256 is "
            f"{config.sha256[:12]}..., found {weights_digest(config.path)[:12]}...); set model.sha256 to accept them"
        )


def weights_digest(path: str) -> str:
    """SHA-256 of a folder's safetensors files in order of name; for a Hub model, of its name."""
    digest = hashlib.sha256()
    files = sorted(Path(path).glob("*.safetensors"))
    if not files:
        digest.update(path.encode())
    for file in files:
        with file.open("rb") as f:
            while chunk := f.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """SHA-256 of what a fast tokenizer does, in full."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def stretch(config: PreTrainedConfig, alpha: float) -> None:
    """Applies NTK scaling to a text config's rotary embedding, in place."""
    text = config.get_text_config(decoder=True)
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    parameters = text.rope_parameters
    for rope in [parameters] if "rope_theta" in parameters else list(parameters.values()):
        rope["rope_theta"] = float(rope["rope_theta"]) * alpha ** (size / (size - 2))


def load(config: ModelConfig) -> tuple[PreTrainedModel, Tokenizer]:
    """The model, in evaluation mode on its device, and its tokenizer. Raises ValueError when it cannot be loaded."""
    check(config)
    logging.disable_progress_bar()
    try:
        settings = AutoConfig.from_pretrained(config.path)
        if config.ntk_alpha != 1.0:
            stretch(settings, config.ntk_alpha)
        model = AutoModelForCausalLM.from_pretrained(config.path, config=settings, dtype=getattr(torch, config.dtype))
        tokenizer = AutoTokenizer.from_pretrained(config.path)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"the model {config.path} could not be loaded: {reason}") from None
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.requires_grad_(False).eval().to(device), tokenizer
