"""The model `namm` of `lm_eval`: a model of transformers that answers with a memory in the place of its cache.

    python -m workers.lm_eval_model --model namm --model_args pretrained=MODEL,memory=PATH --tasks TASKS

is `lm_eval`'s own command line, with one more model in its registry: `lm_eval` 0.4.13 has no hook through which its
command finds a model of another package, so that this module must be imported first. In Python, importing it does
the same: `lm_eval.simple_evaluate(model="namm", ...)`. Prompts, batches, chat templates, stop texts and scores are
`lm_eval`'s own, those of its model `hf`; only what is remembered is ours. Knows no task.

The protocol is *streaming*: while a text is read, the memory forgets every `update_interval` tokens, and each token
sees what is held by then. A continuation is scored after its context has been read in this way, each token as it would
be in generation.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from namm_core import MemoryCache, Namm, policies
from namm_core.protocols import Policy
from workers import models
from workers.plugins import add as add_plugins

try:
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f'the model namm of lm_eval needs {error.name}: pip install "namm[benchmarks]"', name=error.name
    ) from error


class Refused(ValueError):
    """Arguments of the model that no evaluation can be made with; one line."""


@register_model("namm")
class NammLM(HFLM):
    """A causal language model of transformers with a memory.

    Args:
        pretrained: the model, as for `lm_eval`'s `hf`: a folder or a repository of the Hub.
        memory: a saved NAMM: a folder, a run's folder, or a repository of the Hub.
        policy: instead of a memory, another policy by name, such as `full` or `snapkv`.
        budget: what each head keeps: a fraction (0.2) or a number of tokens (512); policies that keep a number of
            tokens need one.
        update_interval: tokens between two updates of a policy, 512 where none is given; a NAMM has its own.
        ntk_alpha: NTK scaling of the rotary embedding. None: what the memory was evolved with, as its model card says;
            1 (none) for other policies.
        plugins: a folder of plug-ins, or a package, in which the policy may be.
        device: None takes a GPU where there is one.
        max_length: longest text in tokens; None: what the model's configuration says, times `ntk_alpha`.
        settings: options of the policy, and whatever else `lm_eval`'s `hf` takes.

    Raises ValueError, one line, for a memory or policy that is not there, and for a model that no memory serves.
    """

    def __init__(
        self,
        pretrained: str | PreTrainedModel,
        memory: str | None = None,
        policy: str | None = None,
        budget: int | float | None = None,
        update_interval: int | None = None,
        ntk_alpha: float | None = None,
        plugins: str | None = None,
        device: str | None = None,
        max_length: int | None = None,
        **settings: Any,
    ) -> None:
        if (memory is None) == (policy is None):
            raise Refused("model_args: give memory=PATH, a saved NAMM, or policy=NAME, one of them")
        try:
            add_plugins(() if plugins is None else (str(plugins),))
            if policy is not None:
                self.policy: Policy = _policy(str(policy), budget, update_interval, settings)
            else:
                self.policy = _memory(str(memory), budget, update_interval)
        except ValueError as error:
            raise Refused(f"model_args: {error}") from None
        if ntk_alpha is None:
            ntk_alpha = 1.0 if memory is None else evolved_alpha(str(memory))
        if not isinstance(ntk_alpha, int | float) or isinstance(ntk_alpha, bool) or not 0 < ntk_alpha < float("inf"):
            raise Refused(f"model_args: ntk_alpha must be a positive number, not {ntk_alpha!r}")
        if ntk_alpha != 1 and not isinstance(pretrained, str):
            raise Refused("ntk_alpha is for a model that is loaded here: stretch one that is given before it is made")
        self.ntk_alpha = float(ntk_alpha)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        super().__init__(pretrained, device=device, max_length=max_length, **settings)
        if max_length is None and self.ntk_alpha != 1:
            self._max_length = round(self.max_length * self.ntk_alpha)
        try:
            MemoryCache(self.model, self.policy).detach()
        except ValueError as error:
            raise Refused(str(error)) from None

    def get_model_info(self) -> dict[str, Any]:
        """What `lm_eval` writes of the model beside its results, and what was remembered."""
        shown = {"memory_policy": type(self.policy).__name__, "memory_update_interval": self.policy.update_interval}
        return super().get_model_info() | shown | {"memory_ntk_alpha": self.ntk_alpha}

    def _create_model(self, pretrained: str, **settings: Any) -> None:
        if self.ntk_alpha != 1:
            models.stretch(self._config, self.ntk_alpha)
            settings["config"] = self._config  # the embedding is computed as the model is made
        super()._create_model(pretrained, **settings)

    def _model_call(
        self, inps: torch.Tensor, attn_mask: torch.Tensor | None = None, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits (rows, tokens, vocabulary) of texts (rows, tokens) that are padded on the right.

        Each token sees what the memory holds by then. Padding comes after all that counts, and changes nothing of it.
        """
        precision = torch.autocast(
            device_type=self.device.type,
            dtype=self.mixed_precision_dtype,
            enabled=self.mixed_precision_dtype is not None,
        )
        with torch.no_grad(), precision, MemoryCache(self.model, self.policy) as cache:
            return self.model(inps, past_key_values=cache, use_cache=True).logits

    def _model_generate(
        self, context: torch.Tensor, max_length: int, stop: list[str], **generation_kwargs: Any
    ) -> torch.Tensor:
        """Tokens (rows, up to `max_length`) of prompts that are padded on the left, which `context` begins with."""
        with MemoryCache(self.model, self.policy) as cache:
            return super()._model_generate(context, max_length, stop, past_key_values=cache, **generation_kwargs)


def evolved_alpha(memory: str) -> float:
    """The rotary stretch that a memory was evolved with, as its model card says; 1 where it has none."""
    card = _folder(memory) / "README.md"
    if not card.is_file() and not Path(memory).exists():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

        try:
            card = Path(hf_hub_download(memory, "README.md"))
        except (EntryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError):
            return 1.0
    found = re.search(r"NTK alpha ([0-9.e+]*[0-9])", card.read_text(encoding="utf-8")) if card.is_file() else None
    return 1.0 if found is None else float(found[1])


def _folder(memory: str) -> Path:
    """The folder of a saved NAMM, which in a run's folder is `namm`."""
    folder = Path(memory)
    return folder / "namm" if not (folder / "config.json").is_file() and (folder / "namm").is_dir() else folder


def _memory(memory: str, budget: int | float | None, update_interval: int | None) -> Namm:
    if update_interval is not None:
        raise ValueError("update_interval is part of a saved NAMM: leave it out")
    if budget is not None:
        raise ValueError("a NAMM decides itself how much it keeps: budget=... is for policy=..., leave it out")
    return Namm.from_pretrained(_folder(memory) if Path(memory).exists() else memory)


def _policy(name: str, budget: int | float | None, update_interval: int | None, settings: dict[str, Any]) -> Policy:
    """The policy by name; takes its own options out of `settings`."""
    given = {option: settings.pop(option) for option in policies.options(name) if option in settings}
    options = policies.check(name, given, budget)
    kind = policies.named(name)
    if "relevant" in inspect.signature(kind).parameters:
        raise ValueError(f"the policy {name} must be told where the answers are, which lm_eval's tasks do not say")
    if kind.takes_budget and budget is None:
        raise ValueError(f"the policy {name} needs budget=..., a fraction or a number of tokens")
    given = {"budget": budget, "update_interval": update_interval}
    return kind(**options, **{option: value for option, value in given.items() if value is not None})


def main() -> None:
    """`lm_eval`'s command line, with `namm` among its models."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except Refused as error:
        print(f"lm_eval: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
