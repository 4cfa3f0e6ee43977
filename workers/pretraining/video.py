"""Train the small video-language model and its tokenizer from scratch.

    python -m workers.pretraining.video --out FOLDER

It learns the answers to several questions about short clips. Knows nothing of memories: longer clips are reached
afterwards by NTK-scaled RoPE alone (`--measure` prints how well).
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads on shared cores cost a factor of ten
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import argparse
import json
import random
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

from workers.array_cache import ArrayCache
from workers.config import EvaluatorConfig, ModelConfig
from workers.pretraining.language import SPECIAL, build_tokenizer
from workers.targets.video import PROCESSORS, Video
from workers.tasks.drawing import choose
from workers.tasks.sources import clips
from workers.tasks.video import MARK
from workers.unit import SampleRef

LENGTHS = (2, 4, 8, 16)  # frames of a clip
BATCH_FRAMES = 192
QUESTIONS = 8  # asked about each clip
PATCH = 4  # pixels
CELLS = clips.SIDE // PATCH // 2  # tokens along a frame's side: the model halves each side of its patches
SEEN = 6  # pixels of a shape that a token must show to be asked what it is
NAMING = 0.5  # weight of naming beside the questions


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlavaOnevisionForConditionalGeneration:
    """The untrained model. Whether it learns at all depends on its initialisation (`docs/LOG.md`)."""
    text = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,  # type: ignore[call-arg]  # the model reads it, its configuration does not declare it
        max_position_embeddings=max(LENGTHS) * CELLS**2 + 64,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = SiglipVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=clips.SIDE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        video_token_index=tokenizer.get_vocab()[MARK],
        image_token_index=tokenizer.get_vocab()["<image>"],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_grid_pinpoints=[[clips.SIDE, clips.SIDE]],
        tie_word_embeddings=True,
    )
    model = LlavaOnevisionForConditionalGeneration(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim < 2:
                continue
            fan_in = weight.shape[-1] if "embed" in name and weight.ndim == 2 else weight[0].numel()
            torch.nn.init.normal_(weight, std=fan_in**-0.5)
            if name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight", "fc2.weight")):
                weight.mul_(0.1)
    return model


def pixels(frames: np.ndarray) -> Tensor:
    """Frames (..., height, width, 3) uint8 as the vision tower takes them: (..., 3, height, width) float32, -1 to 1."""
    return torch.from_numpy(frames).movedim(-1, -3).float() / 127.5 - 1


@dataclass(frozen=True)
class Lesson:
    """A clip, what is asked about it, and what each of its tokens shows."""

    frames: np.ndarray
    """(frames, height, width, 3) uint8."""
    questions: list[tuple[str, clips.Question]]
    """Kind and content of each question."""
    said: np.ndarray
    """(tokens, 3) int64: indices of shape, colour and time of day; -1 where no shape is to be seen."""


def described(clip: clips.Clip, covered: np.ndarray) -> np.ndarray:
    """`Lesson.said` of a clip; covered: (frames, SIDE, SIDE) bool."""
    cell = clips.SIDE // CELLS
    seen = covered.reshape(len(covered), CELLS, cell, CELLS, cell).sum((2, 4)).reshape(len(covered), -1) >= SEEN
    said = np.full((*seen.shape, 3), -1)
    for event, span in zip(clip.events, clip.spans, strict=True):
        for at in span:
            said[at, seen[at], 0] = list(clips.SHAPES).index(event.shape)
            said[at, seen[at], 1] = list(clips.COLOURS).index(event.colour)
    said[..., 2] = np.array([list(clips.TIMES).index(time) for time in clip.times])[:, None]
    return said.reshape(-1, 3)


def lesson(rng: random.Random, frames: int, kinds: tuple[str, ...]) -> Lesson:
    """A clip of one family of kinds, with questions of all kinds of that family."""
    show = clips.KINDS[choose(rng, kinds)][0]
    stay = 1 + int(rng.random() * 3)
    most = min(8, max(1, frames // stay))
    events = show(rng, 1 + int(rng.random() * most))
    clip = clips.compose(rng, events, frames, min(stay, frames // len(events)))
    pools = [(kind, tuple(ask(clip))) for kind, (shown, ask) in clips.KINDS.items() if kind in kinds and shown is show]
    drawn = [choose(rng, tuple(pools)) for _ in range(QUESTIONS)]
    questions = [(kind, choose(rng, pool)) for kind, pool in drawn]
    pictures, covered = clips.paint(rng, clip, rng.random())
    return Lesson(pictures, questions, described(clip, covered))


def naming(features: Tensor, said: Tensor, words: Tensor, ids: dict[str, int]) -> Tensor:
    """The loss of naming what each token shows, from that token alone: features point to the words for it.

    features: (tokens, size); said: (tokens, 3), as in `Lesson`; words: (vocabulary, size), the tied embeddings; ids: of
    the pieces.
    """
    total = features.new_zeros(())
    features = features * features.square().mean(-1, keepdim=True).add(1e-6).rsqrt()
    columns: tuple[Iterable[str], ...] = (clips.SHAPES, clips.COLOURS, clips.TIMES)
    for column, names in enumerate(columns):
        for end in ("", "?") if column < 2 else ("",):
            rows = torch.tensor([ids[f" {name}{end}"] for name in names])
            total = total + torch.nn.functional.cross_entropy(
                features @ words[rows].T, said[:, column], ignore_index=-1, reduction="sum"
            ) / (said[:, column] >= 0).sum().clamp(min=1)
    return total


def rows(lessons: list[Lesson], ids: dict[str, int]) -> tuple[Tensor, Tensor]:
    """Token ids (clips, tokens), padded on the right, and the positions (clips, QUESTIONS) of the answers in them."""
    filled, answers = [], []
    for one in lessons:
        row = [ids[clips.OPENING]] + [ids[MARK]] * (len(one.said) + 1)
        at = []
        for _, question in one.questions:
            row += [ids[piece] for piece in question.pieces]
            at.append(len(row))
            row.append(ids[f" {question.answer}"])
        filled.append(torch.tensor(row))
        answers.append(at)
    padded = torch.nn.utils.rnn.pad_sequence(filled, batch_first=True, padding_value=ids[SPECIAL[1]])
    return padded, torch.tensor(answers)


def train(
    model: LlavaOnevisionForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    kinds: tuple[str, ...],
    steps: int,
    seed: int,
) -> None:
    """Train in place. The learning rate is flat for 60 % of the steps, then falls linearly to 0."""
    ids = tokenizer.get_vocab()
    rng = random.Random(seed)
    peak = 3e-3
    optimiser = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.1)
    started = time.monotonic()
    hits: dict[tuple[str, int], list[bool]] = {}
    losses: list[tuple[float, float]] = []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = peak * min(1.0, (step + 1) / 50, (steps - step) / (0.4 * steps))
        frames = choose(rng, LENGTHS)
        lessons = [lesson(rng, frames, kinds) for _ in range(BATCH_FRAMES // frames)]
        batch, places = rows(lessons, ids)
        features = model.get_video_features(pixels(np.stack([one.frames for one in lessons]))).pooler_output
        pictures = (batch == model.config.video_token_id)[..., None]
        embedded = model.get_input_embeddings()(batch).masked_scatter(pictures, features.flatten(0, 1))
        states = model.model.language_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
        row, at = torch.arange(len(lessons)).repeat_interleave(QUESTIONS), places.flatten()
        logits, wanted = model.lm_head(states[row, at - 1]), batch[row, at]
        answering = torch.nn.functional.cross_entropy(logits, wanted)
        said = torch.from_numpy(np.concatenate([one.said for one in lessons]))
        named = naming(features[:, :-1].flatten(0, 1), said, model.lm_head.weight, ids)
        optimiser.zero_grad()
        (answering + NAMING * named).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        asked = [kind for one in lessons for kind, _ in one.questions]
        for kind, hit in zip(asked, (logits.argmax(-1) == wanted).tolist(), strict=True):
            hits.setdefault((kind, frames), []).append(hit)
        losses.append((float(answering.detach()), float(named.detach())))
        if (step + 1) % 50 == 0 or step + 1 == steps:
            seconds = time.monotonic() - started
            left = seconds / (step + 1) * (steps - step - 1)
            means = "  ".join(f"{loss:.3f}" for loss in np.mean(losses, axis=0))
            print(f"step {step + 1}/{steps}  loss, naming {means}  {seconds:.0f} s, {left:.0f} s left", flush=True)
            for kind in kinds:
                shares = (f"{n}: {np.mean(hits[kind, n]):.2f}" for n in LENGTHS if (kind, n) in hits)
                print(f"    {kind:8}", "  ".join(shares), flush=True)
            hits, losses = {}, []


@torch.inference_mode()
def measure(folder: Path, kinds: list[str], lengths: list[int], alphas: list[float], samples: int) -> None:
    """Print the share of right answers of each kind for each number of frames and NTK alpha.

    `full` is with all tokens, `oracle` with only the relevant ones, at their true positions.
    """
    print("frames tokens alpha cache  mean  " + " ".join(f"{kind:>7}" for kind in kinds))
    for frames in lengths:
        tasks = {"source": "clips", "frames": frames, "events": min(clips.ClipsConfig().events, frames // 2)}
        for alpha in alphas:
            target = Video(EvaluatorConfig(ModelConfig(str(folder), ntk_alpha=alpha), tasks), ArrayCache(None))
            right: dict[tuple[str, str], list[bool]] = {}
            for kind in kinds:
                for index in range(samples):
                    sample = target.sample(SampleRef(kind, "validation", index))
                    embedded, all_places = target.embedded(sample), torch.arange(sample.tokens)
                    for cache, kept in (("full", all_places), ("oracle", torch.from_numpy(sample.relevant).long())):
                        got = target.model(inputs_embeds=embedded[None, kept], position_ids=kept[None])
                        answer = int(got.logits[0, -1].argmax())
                        right.setdefault((cache, kind), []).append(answer == sample.prompt.reference[0])
            for cache in ("full", "oracle"):
                scores = [float(np.mean(right[cache, kind])) for kind in kinds]
                print(
                    f"{frames:6} {sample.tokens:6} {alpha:5g} {cache:6} {np.mean(scores):.3f} "
                    + " ".join(f"{score:7.2f}" for score in scores),
                    flush=True,
                )


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m workers.pretraining.video", description="Train the video model.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=1600, help="optimiser steps")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and of the clips")
    parser.add_argument("--kinds", nargs="+", default=list(clips.KINDS), help="kinds to train or measure")
    parser.add_argument("--measure", action="store_true", help="measure the model in --out instead of training")
    parser.add_argument("--frames", type=int, nargs="+", default=[16, 96], help="lengths to measure")
    parser.add_argument("--alpha", type=float, nargs="+", default=[4, 8, 16], help="NTK alphas to measure")
    parser.add_argument("--samples", type=int, default=100, help="samples per kind to measure")
    chosen = parser.parse_args(arguments)
    if chosen.measure:
        measure(chosen.out, chosen.kinds, chosen.frames, chosen.alpha, chosen.samples)
        return 0
    torch.manual_seed(chosen.seed)
    tokenizer = build_tokenizer(clips.vocabulary(), (*SPECIAL, "<image>", MARK))
    model = build_model(tokenizer)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens", flush=True)
    train(model, tokenizer, tuple(chosen.kinds), chosen.steps, chosen.seed)
    model.save_pretrained(chosen.out)
    tokenizer.save_pretrained(chosen.out)
    wanted = {"size": {"height": clips.SIDE, "width": clips.SIDE}, "rescale_factor": 1 / 255}
    settings = {**wanted, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (chosen.out / PROCESSORS[0]).write_text(json.dumps(settings, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
