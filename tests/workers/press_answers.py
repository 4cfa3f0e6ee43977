"""`NammPress` in `kvpress`'s own pipeline: `python -m tests.workers.press_answers FILE` writes what it answers.

Runs with kvpress on the path (`tests.kvpress_wheels`), in a process of its own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from namm_core import Namm
from namm_core.policies import ExpectedAttention, Full, KeyDiff, SnapKV
from namm_core.protocols import Policy
from workers.tasks.sources.recall import RecallConfig, RecallTasks

MODELS = Path(__file__).parent.parent.parent / "models"
SAMPLES, ANSWER = 4, 3
POLICIES = {
    "full": lambda: Full(),
    "keydiff": lambda: KeyDiff(budget=0.4),
    "snapkv": lambda: SnapKV(budget=0.4, window=64, kernel=5, pooling="avg"),
    "expected_attention-layer": lambda: ExpectedAttention(budget=0.5, over="layer"),
    "namm": lambda: Namm.from_pretrained(MODELS / "recall-namm"),
}
"""With equal and unequal numbers of tokens in the heads of a layer."""


def texts() -> list[tuple[str, str]]:
    """Contexts, and a question on each."""
    tasks = RecallTasks(RecallConfig(tokens=250, kinds=("residence",), facts=6))
    samples = [tasks.sample("residence", "heldout", index) for index in range(SAMPLES)]
    return [(sample.prompt[: sample.context], sample.prompt[sample.context :]) for sample in samples]


def policy(name: str) -> Policy:
    """A fresh policy by its name here."""
    return POLICIES[name]()


def load():
    """(model, tokenizer): the small model, with a chat template that changes nothing, since kvpress needs one here."""
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "recall-small")
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    return AutoModelForCausalLM.from_pretrained(MODELS / "recall-small").eval(), tokenizer


def main(file: str) -> None:
    """Writes {press: [[answer, compression ratio], ...]}, one for each text."""
    import kvpress
    from transformers import pipeline

    from workers.namm_press import NammPress

    model, tokenizer = load()
    pipe = pipeline("kv-press-text-generation", model=model, tokenizer=tokenizer, device="cpu")
    presses: dict[str, kvpress.BasePress | None] = {name: NammPress(policy(name)) for name in POLICIES}
    presses["none"] = None
    presses["namm-streaming"] = NammPress(Namm.from_pretrained(MODELS / "recall-namm"), streaming=True)
    presses["set-by-ratio"] = NammPress(KeyDiff(budget=0.9))
    presses["set-by-ratio"].compression_ratio = 0.6  # as kvpress's evaluation sets it
    found: dict[str, list] = {}
    with torch.inference_mode():
        for name, press in presses.items():
            for context, question in texts():
                said = pipe(context, question=question, press=press, max_new_tokens=ANSWER)
                found.setdefault(name, []).append([said["answer"], getattr(press, "compression_ratio", 0.0)])
    Path(file).write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
