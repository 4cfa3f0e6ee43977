"""The model card of an evolved NAMM: a README.md in the Hub's form, from the job and its result. Writes no files.

https://huggingface.co/docs/hub/model-cards describes the block at its top.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from namm_core.config import NammConfig
from orchestrator.report import tables
from orchestrator.spec import JobSpec
from workers.model_packages import CATALOGUE

TAGS = ["namm", "kv-cache", "long-context", "evolution", "custom_generate"]


def text(job: JobSpec, result: Mapping[str, Any]) -> str:
    """The whole card; result: what `result.json` holds."""
    return "\n".join([front_matter(job, result), body(job, result)])


def front_matter(job: JobSpec, result: Mapping[str, Any]) -> str:
    """The block that the Hub reads: licence, base model, tags, and the held-out scores as `model-index`."""
    from huggingface_hub import EvalResult, ModelCardData

    source = str(job.tasks["source"])
    scores = [
        EvalResult(
            task_type="text-generation",
            dataset_type=source,
            dataset_name=source,
            dataset_config=task,
            dataset_split="heldout",
            metric_type="score",
            metric_name=f"held-out score with {result['policies']['namm']['kept']:.2f} of the KV cache",
            metric_value=round(score, 4),
        )
        for task, score in result["policies"]["namm"]["score"].items()
    ]
    data = ModelCardData(
        license=job.share.license,
        library_name="namm",
        base_model=base_model(job),
        tags=[*TAGS, *(f"task:{task}" for task in job.kinds)],
        pipeline_tag="text-generation",
        model_name=_title(job),
        eval_results=scores,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def base_model(job: JobSpec) -> str:
    """The base model's name in the form that the Hub accepts: its repository (also that of a model fetched by name),
    or the name of its folder."""
    if job.model.path in CATALOGUE:
        return CATALOGUE[job.model.path].repository
    folder = Path(job.model.path)
    name = folder.resolve().name if folder.is_dir() else job.model.path
    return re.sub(r"[^\w./-]+", "-", name)


def body(job: JobSpec, result: Mapping[str, Any]) -> str:
    """The card without the block that the Hub reads."""
    namm = result["policies"]["namm"]
    low, high = namm["difference_interval"]
    interval = "" if low is None else f" (95 % interval {low:+.3f} to {high:+.3f})"
    verdict = (
        f"On {namm['samples']} held-out samples it keeps **{namm['kept']:.2f}** of the KV cache and scores "
        f"**{namm['mean']:.3f}**, {namm['difference']:+.3f} against the full cache on the same samples{interval}."
    )
    sections = {
        f"# {_title(job)}": _about(job) + "\n\n" + verdict,
        "## Use it": _usage(job),
        "## Measured": tables.markdown(result),
        "## How it came about": _origin(job, result),
        "## Limits": LIMITS,
        "## Licence": f"`{job.share.license}`. The code in `custom_generate` is Apache-2.0.",
        "## Source": SOURCE,
    }
    return "\n".join(f"{head}\n\n{content.strip()}\n" for head, content in sections.items())


def figures(result: Mapping[str, Any]) -> dict[str, str]:
    """The figures that a registered version carries as its tags."""
    namm, full = result["policies"]["namm"], result["policies"]["full"]
    low, high = namm["difference_interval"]
    found = {"score": namm["mean"], "kept": namm["kept"], "full_score": full["mean"]}
    found |= {"difference": namm["difference"], "difference_low": low, "difference_high": high}
    shown = {name: f"{value:.4f}" for name, value in found.items() if value is not None}
    return {**shown, "heldout_samples": str(namm["samples"])}


LIMITS = """\
- It was measured on the tasks above and on no others; on another model, or on other lengths, measure it again.
- What was forgotten is gone: a question about it later in the conversation cannot be answered.
- No static or compiled caches, no assisted decoding."""

SOURCE = """\
Cetin, Sun, Zhao and Tang, [*An Evolved Universal Transformer Memory*](https://arxiv.org/abs/2410.13166)."""


def _title(job: JobSpec) -> str:
    return f"namm-{job.name}"


def _about(job: JobSpec) -> str:
    return (
        f"A *Neural Attention Memory Model* for `{base_model(job)}`: a small network that looks at "
        f"{_seen(job)} each token of the KV cache and decides, for each layer and head, which tokens to forget, every "
        f"{job.memory.update_interval} tokens. The language model itself is not changed."
    )


def _seen(job: JobSpec) -> str:
    """What the memory is shown, in words that a token follows."""
    if job.memory.features == NammConfig().features:
        return "the attention received by"
    return f"{', '.join(name.replace('_', ' ') for name in job.memory.features)} of"


def _usage(job: JobSpec) -> str:
    path = base_model(job) if job.model.path in CATALOGUE else job.model.path
    file = "" if job.model.gguf is None else f', gguf_file="{job.model.gguf}"'
    load = [f'model = AutoModelForCausalLM.from_pretrained("{path}"{file})']
    imports = "AutoModelForCausalLM, AutoTokenizer"
    if job.model.ntk_alpha != 1.0:
        imports = f"AutoConfig, {imports}"
        load = [
            f'config = AutoConfig.from_pretrained("{path}"{file})',
            "size = getattr(config, 'head_dim', None) or config.hidden_size // config.num_attention_heads",
            f"config.rope_parameters['rope_theta'] *= {job.model.ntk_alpha:g} ** (size / (size - 2))  # as evolved",
            f'model = AutoModelForCausalLM.from_pretrained("{path}", config=config{file})',
        ]
    budget = "budget=0.3, " if job.memory.selection == "budget" else ""
    lines = [
        f"from transformers import {imports}",
        "",
        *load,
        f'tokenizer = AutoTokenizer.from_pretrained("{path}"{file})',
        'inputs = tokenizer("Some long text.", return_tensors="pt")',
        'memory = "FOLDER OR REPOSITORY OF THIS CARD"',
        f"answer = model.generate(**inputs, custom_generate=memory, trust_remote_code=True, {budget}max_new_tokens=20)",
        "print(tokenizer.decode(answer[0]))",
    ]
    after = (
        "With the package `namm` installed, the memory can be held and looked at:\n"
        f"`MemoryCache(model, Namm.from_pretrained(memory{', budget=0.3' if budget else ''}))` of `namm_core` is a "
        "cache like any other."
    )
    if budget:
        after += (
            "\n\n`budget` is what it may keep: a fraction of the tokens seen (float), or tokens (int). The same "
            "numbers serve every size."
        )
    return "\n".join(["Nothing but transformers is needed:", "", "```python", *lines, "```", "", after])


def _origin(job: JobSpec, result: Mapping[str, Any]) -> str:
    weights = job.model.revision or (f"weights sha256 {job.model.sha256}" if job.model.sha256 else "as it was then")
    lines = [
        f"- Base model `{base_model(job)}`, {weights}, {job.model.dtype}, NTK alpha {job.model.ntk_alpha:g}.",
        f"- Evolved on {_names(job.train)}; also measured on {_names(job.heldout) or 'no other task'}, which evolution "
        "never saw.",
        f"- {result['generations']} generations of {job.search.population} candidates, seed {result['seed']}, "
        f"{result['evaluations']:,} evaluations; the best on validation samples was "
        + (f"that of generation {result['best_generation']}." if result["best_generation"] else "the start itself."),
    ]
    if "start" in result:
        lines.append(f"- The search started from the rule `{result['start']['rule']}`.")
    return "\n".join(lines)


def _names(tasks: tuple[str, ...]) -> str:
    return ", ".join(f"`{task}`" for task in tasks)
