"""The typed configuration of a worker. Imports no torch: a head node reads it too."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from namm_core.config import NammConfig


@dataclass(frozen=True)
class ModelConfig:
    """Which model answers, and how it is stretched."""

    path: str
    """Folder, repository on the Hub, or the name of a model that `namm models fetch` brought."""
    gguf: str | None = None
    """Name of the GGUF file in that folder or repository which holds the model; None: it is in safetensors."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of weights and activations."""
    ntk_alpha: float = 1.0
    """NTK scaling of the rotary embedding: base' = base * alpha^(d/(d-2)), d the head size; 1 is none."""
    sha256: str | None = None
    """Digest of a folder's weights (`models.weights_digest`; of a GGUF file, its SHA-256) that the job was written for;
    others are refused."""
    revision: str | None = None
    """Branch, tag or commit of a Hub repository; None is its default branch."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it runs; `auto` takes a GPU where there is one."""
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = None
    """How its layers are spread over all GPUs of a worker (needs the package accelerate); None: on one device."""

    def __post_init__(self) -> None:
        if self.ntk_alpha <= 0:
            raise ValueError(f"ntk_alpha must be positive, not {self.ntk_alpha}")
        if self.gguf is not None and not re.fullmatch(r"[^/\\]+\.gguf", self.gguf):
            raise ValueError(f"gguf must be the name of a .gguf file in the folder or repository, not {self.gguf!r}")
        if self.sha256 is not None and self.revision is not None:
            raise ValueError("sha256 is for the weights of a folder, revision for those of a Hub repository: give one")
        if self.device_map is not None and self.device != "auto":
            raise ValueError("device_map chooses the devices: leave device at auto")


@dataclass(frozen=True)
class PromptConfig:
    """How a sample's text becomes the model's tokens."""

    max_tokens: int | None = None
    """Longest prompt in tokens, special ones included; a longer one loses its middle, as in LongBench. None: any
    length."""
    bos: Literal["auto", "always", "never"] = "auto"
    """The token that opens a text: `auto` as the tokenizer, or the chat template, does by itself; always; or never."""
    chat_template: bool = False
    """Whether prompts are put into the tokenizer's chat template; LongBench's few-shot and code tasks never are."""

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 2:
            raise ValueError(f"max_tokens must be at least 2, not {self.max_tokens}")


@dataclass(frozen=True)
class EvaluatorConfig:
    """Everything that an evaluator is made from."""

    model: ModelConfig
    tasks: dict[str, Any]
    """`source` and its options."""
    memory: NammConfig = field(default_factory=NammConfig)
    threads: int = 1
    """CPU threads of one worker."""
    redis_url: str | None = field(default=None, repr=False)
    """Where prompts are cached; None: only in this process."""
    prompt: PromptConfig = field(default_factory=PromptConfig)
    target: str = "language"
    """What kind of model it is, and how it is scored: a module of `workers.targets`."""
    plugins: tuple[str, ...] = ()
    """Folders or importable packages with plug-ins from outside (`workers.plugins`)."""
    fused: Literal["auto", True, False] = False
    """Whether attention under a memory goes through Triton's kernels (docs/kernel.md). They have only run in Triton's
    interpreter, never on a GPU. `auto`: where there are a GPU and Triton; true: refused where they cannot run."""
