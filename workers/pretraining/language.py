"""Train a small recall model and its tokenizer from scratch.

    python -m workers.pretraining.language --model NAME --out FOLDER

Memories are evolved on `llama` and transferred to `qwen3`, a larger model of another architecture.

This is plain next-token training on short recall documents with several questions each. Knows nothing of memories:
longer prompts are reached afterwards by NTK-scaled RoPE alone (`--measure` prints how well).
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads on shared cores cost a factor of ten
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import argparse
import dataclasses
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from workers.tasks import words
from workers.tasks.sources import recall

LENGTHS = (32, 64, 128, 256)  # tokens of a document
BATCH_TOKENS = 4096
SHARES = {"passkey": 0.35, "topic": 0.2}  # of the documents that hold this kind besides a fact kind
FEW: dict[str, Any] = {"facts": 4, "topic_words": 8}  # densities that a prompt of training length can hold
SPECIAL = ("<unk>", "<pad>", "<eos>")


def build_tokenizer(
    words: tuple[str, ...] = words.vocabulary(), special: tuple[str, ...] = SPECIAL
) -> PreTrainedTokenizerFast:
    """A unigram tokenizer whose pieces are the given words, and bytes for everything else: no text is lost.

    special: `SPECIAL`, followed by any further tokens that a text may contain by name.
    """
    pieces = [(piece, -2.0) for piece in words]
    vocabulary = [(token, -20.0) for token in special] + pieces + [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    # A "<" is split off, so that a text which spells a byte token ("<0x41>") is not read as that byte.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("<", "isolated"),
            pre_tokenizers.Split(Regex("[ \n]"), "merged_with_next"),
            pre_tokenizers.Split(Regex("[.]"), "isolated"),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=SPECIAL[0],
        pad_token=SPECIAL[1],
        eos_token=SPECIAL[2],
        additional_special_tokens=list(special[3:]) or None,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def llama(common: dict[str, Any]) -> PreTrainedModel:
    """A Llama of 234,624 parameters: 3 layers, 4 query and 2 KV heads of 32."""
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        **common,
    )
    return LlamaForCausalLM(config)


def qwen3(common: dict[str, Any]) -> PreTrainedModel:
    """A Qwen3 of 1,010,368 parameters: 4 layers, 9 query and 3 KV heads of 24, queries and keys normalised."""
    config = Qwen3Config(
        hidden_size=128,
        intermediate_size=400,
        num_hidden_layers=4,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=24,
        **common,
    )
    return Qwen3ForCausalLM(config)


MODELS = {"llama": (llama, 2300), "qwen3": (qwen3, 1500)}  # and how many optimiser steps it takes


def build_model(tokenizer: PreTrainedTokenizerFast, which: str = "llama") -> PreTrainedModel:
    """An untrained model of `MODELS`. Whether it learns at all depends on its initialisation (`docs/LOG.md`)."""
    build, _ = MODELS[which]
    model = build(
        {
            "vocab_size": len(tokenizer),
            "max_position_embeddings": max(LENGTHS),
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim < 2:
                continue
            torch.nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.mul_(0.1)
    return model


def training_document(rng: random.Random, tokens: int) -> tuple[list[str], list[bool]]:
    """A document of `tokens` pieces with several questions in its last quarter, and which of the pieces are answers."""
    while True:
        few = 2 + int(rng.random() * (min(tokens, 160) // 16 - 1))
        config = recall.RecallConfig(
            facts=few,
            moves=2 + int(rng.random() * 2),
            topic_words=4 + 2 * int(rng.random() * (tokens // 16 - 2)),
        )
        kinds = [("residence", "resident", "colour", "journey", "latest")[int(rng.random() * 5)]]
        kinds += [kind for kind, share in SHARES.items() if rng.random() < share]
        drafts = [recall.KINDS[kind](rng, config) for kind in kinds]
        asked: list[str] = []
        answers: list[bool] = []
        while len(asked) < tokens // 4 - 4:
            draft = drafts[int(rng.random() * len(drafts))]
            question = draft.questions[int(rng.random() * len(draft.questions))]
            asked += [*question.pieces, *question.answer]
            answers += [False] * len(question.pieces) + [True] * len(question.answer)
        try:
            page = recall.compose(rng, drafts, tokens - len(asked))
        except ValueError:
            continue  # too many facts for this length: draw again
        return page.pieces + asked, [False] * len(page.pieces) + answers


def train(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, steps: int, seed: int) -> None:
    """Train in place. The learning rate is flat for 60 % of the steps, then falls linearly to 0."""
    ids = tokenizer.get_vocab()
    rng = random.Random(seed)
    peak = 3e-3
    optimiser = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.1)
    started, hits, asked, losses = time.monotonic(), 0, 0, 0.0
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = peak * min(1.0, (step + 1) / 50, (steps - step) / (0.4 * steps))
        tokens = LENGTHS[int(rng.random() * len(LENGTHS))]
        documents = [training_document(rng, tokens) for _ in range(BATCH_TOKENS // tokens)]
        batch = torch.tensor([[ids[piece] for piece in pieces] for pieces, _ in documents])
        answer = torch.tensor([flags for _, flags in documents])[:, 1:]
        logits = model(batch[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none")
        weight = torch.where(answer.flatten(), 1.0, 0.02)
        total = (loss * weight).sum() / weight.sum()
        optimiser.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        hits += int((logits.argmax(-1) == batch[:, 1:])[answer].sum())
        asked += int(answer.sum())
        losses += float(total.detach())
        if (step + 1) % 50 == 0 or step + 1 == steps:
            seconds = time.monotonic() - started
            left = seconds / (step + 1) * (steps - step - 1)
            print(
                f"step {step + 1}/{steps}  loss {losses / 50:.3f}  answers right {hits / asked:.3f}"
                f"  {seconds:.0f} s, {left:.0f} s left",
                flush=True,
            )
            hits, asked, losses = 0, 0, 0.0


@torch.no_grad()
def exact_match(model: PreTrainedModel, rows: list[tuple[list[int], list[int], list[int]]]) -> float:
    """Share of rows whose whole answer is the most likely continuation.

    A row is (prompt ids, answer ids, positions kept): the model sees only the kept tokens, at their true positions.
    """
    right = 0
    for prompt, answer, kept in rows:
        ids = [prompt[at] for at in kept] + answer[:-1]
        positions = kept + list(range(len(prompt), len(prompt) + len(answer) - 1))
        logits = model(torch.tensor([ids]), position_ids=torch.tensor([positions])).logits[0, -len(answer) :]
        right += logits.argmax(-1).tolist() == answer
    return right / len(rows)


def measure(folder: Path, lengths: list[int], alphas: list[float], samples: int) -> None:
    """Print exact match per kind, full cache and oracle, for each prompt length and NTK alpha."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = AutoConfig.from_pretrained(folder)
    theta = config.rope_parameters["rope_theta"]
    print("tokens alpha cache  mean  " + " ".join(f"{kind:>9}" for kind in recall.KINDS))
    for tokens in lengths:
        config_of_length = recall.RecallConfig(tokens=tokens)
        if tokens <= 300:
            config_of_length = dataclasses.replace(config_of_length, **FEW)
        tasks = recall.RecallTasks(config_of_length)
        rows: dict[tuple[str, str], list] = {}
        for kind in recall.KINDS:
            for index in range(samples):
                sample = tasks.sample(kind, "validation", index)
                read = tokenizer(sample.prompt, return_offsets_mapping=True)
                relevant = [
                    at
                    for at, (start, end) in enumerate(read["offset_mapping"])
                    if any(start < b and a < end for a, b in sample.relevant)
                ]
                answer = tokenizer(sample.completion)["input_ids"]
                for cache, kept in (("full", list(range(len(read["input_ids"])))), ("oracle", relevant)):
                    rows.setdefault((cache, kind), []).append((read["input_ids"], answer, kept))
        for alpha in alphas:
            stretched = theta * alpha ** (config.head_dim / (config.head_dim - 2))
            config.rope_parameters = {"rope_type": "default", "rope_theta": stretched}
            model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32).eval()
            for cache in ("full", "oracle"):
                scores = [exact_match(model, rows[cache, kind]) for kind in recall.KINDS]
                print(
                    f"{tokens:6} {alpha:5g} {cache:6} {sum(scores) / len(scores):.3f} "
                    + " ".join(f"{score:9.2f}" for score in scores),
                    flush=True,
                )


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the Hugging Face folder; the weights in float32."""
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="workers.pretraining.language", description="Train a small recall model.")
    parser.add_argument("--model", choices=MODELS, default="llama", help="what to train (llama)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, help="optimiser steps (the model's own number)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and of the documents")
    parser.add_argument("--measure", action="store_true", help="measure the model in --out instead of training")
    parser.add_argument("--tokens", type=int, nargs="+", default=[120, 1032, 2056], help="lengths to measure")
    parser.add_argument("--alpha", type=float, nargs="+", default=[1, 16, 32, 64], help="NTK alphas to measure")
    parser.add_argument("--samples", type=int, default=100, help="samples per kind to measure")
    chosen = parser.parse_args(arguments)
    if chosen.measure:
        measure(chosen.out, chosen.tokens, chosen.alpha, chosen.samples)
        return 0
    torch.manual_seed(chosen.seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, chosen.model)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens", flush=True)
    train(model, tokenizer, MODELS[chosen.model][1] if chosen.steps is None else chosen.steps, chosen.seed)
    save(model, tokenizer, chosen.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
