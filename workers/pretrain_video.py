"""Train the small video-language model and its tokenizer from nothing: `python -m workers.pretrain_video --out FOLDER`.

Answers alone are learnt, of several questions on short clips. Knows nothing of memories: longer clips are reached
afterwards by NTK-scaled RoPE alone (`--measure` prints how well).
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads on shared cores cost a factor of ten
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import argparse
import random
import sys
import time
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

from workers.pretrain import SPECIAL, build_tokenizer
from workers.tasks import clips
from workers.tasks.video import MARK

LENGTHS = (2, 4, 8, 16)  # frames of a clip
BATCH_FRAMES = 192
QUESTIONS = 8  # asked about each clip
PATCH = 4  # pixels
SEEN = 6  # pixels of a shape that a token must show to be asked what it is
NAMING = 0.5  # weight of naming beside the questions


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlavaOnevisionForConditionalGeneration:
    """The untrained model. Its initialisation decides whether it learns at all (`docs/LOG.md`)."""
    text = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=max(LENGTHS) * 16 + 64,
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
        video_token_index=tokenizer.convert_tokens_to_ids(MARK),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
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
    """(..., height, width, 3) uint8 as the vision tower wants it: (..., 3, height, width) float32 in [-1, 1]."""
    return torch.from_numpy(frames).movedim(-1, -3).float() / 127.5 - 1


def embed(model: LlavaOnevisionForConditionalGeneration, ids: Tensor, features: Tensor) -> Tensor:
    """The stock model's input embeddings (clips, tokens, size) of ids (clips, tokens) and the clips' features."""
    embedded = model.get_input_embeddings()(ids)
    return embedded.masked_scatter((ids == model.config.video_token_id)[..., None], features.flatten(0, 1))


@dataclass(frozen=True)
class Lesson:
    """A clip, what is asked about it, and what may be said of each of its tokens."""

    frames: np.ndarray
    questions: list[clips.Question]
    said: np.ndarray
    """(frames * 16, 3) int64: shape, colour and time of day as indices; -1 where nothing is seen of a shape."""


def described(clip: clips.Clip, covered: np.ndarray) -> np.ndarray:
    """`Lesson.said` of a clip; covered: (frames, SIDE, SIDE) bool."""
    frames, side = len(covered), 4
    cell = clips.SIDE // side
    seen = covered.reshape(frames, side, cell, side, cell).sum((2, 4)).reshape(frames, -1) >= SEEN
    said = np.full((frames, side * side, 3), -1)
    for event, span in zip(clip.events, clip.spans, strict=True):
        for at in span:
            said[at, seen[at], 0] = list(clips.SHAPES).index(event.shape)
            said[at, seen[at], 1] = list(clips.COLOURS).index(event.colour)
    said[..., 2] = np.array([list(clips.TIMES).index(time) for time in clip.times])[:, None]
    return said.reshape(-1, 3)


def naming(features: Tensor, said: Tensor, words: Tensor, ids: dict[str, int]) -> Tensor:
    """Loss of naming, from each token alone, what it shows: features point to the words of what is seen there.

    features: (tokens, size); said: (tokens, 3); words: (vocabulary, size), the tied embeddings.
    """
    total = features.new_zeros(())
    features = features * features.square().mean(-1, keepdim=True).add(1e-6).rsqrt()
    for column, names in enumerate((clips.SHAPES, clips.COLOURS, clips.TIMES)):
        for end in ("", "?") if column < 2 else ("",):
            rows = torch.tensor([ids[f" {name}{end}"] for name in names])
            total = total + torch.nn.functional.cross_entropy(
                features @ words[rows].T, said[:, column], ignore_index=-1, reduction="sum"
            ) / (said[:, column] >= 0).sum().clamp(min=1)
    return total


def training_clip(rng: random.Random, frames: int, kinds: tuple[str, ...]) -> Lesson:
    """A clip and the questions asked about it."""
    show = clips.KINDS[clips.choose(rng, kinds)][0]
    stay = 1 + int(rng.random() * 3)
    most = min(8, max(1, frames // stay))
    events = show(rng, max(1, int(rng.random() * most) + 1))
    stay = min(stay, frames // len(events))
    clip = clips.compose(rng, events, frames, stay)
    asked = [kind for kind in kinds if clips.KINDS[kind][0] is show]
    pools = [clips.KINDS[kind][1](clip) for kind in asked]
    questions = [clips.choose(rng, tuple(clips.choose(rng, tuple(pools)))) for _ in range(QUESTIONS)]
    pictures, covered = clips.paint(rng, clip, rng.random())
    return Lesson(pictures, questions, described(clip, covered))


def train(model, tokenizer, steps: int, seed: int, kinds: tuple[str, ...], lengths: tuple[int, ...]) -> None:
    """Train in place. The learning rate is flat for 60 % of the steps, then falls linearly to 0."""
    ids = tokenizer.get_vocab()
    rng = random.Random(seed)
    peak = 3e-3
    optimiser = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.1)
    started, tally, losses, names_loss = time.monotonic(), {}, 0.0, 0.0
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = peak * min(1.0, (step + 1) / 50, (steps - step) / (0.4 * steps))
        frames = lengths[int(rng.random() * len(lengths))]
        drawn = [training_clip(rng, frames, kinds) for _ in range(BATCH_FRAMES // frames)]
        rows, answers = [], []
        for lesson in drawn:
            row = [ids[clips.OPENING]] + [ids[MARK]] * (frames * 16 + 1)
            at = []
            for question in lesson.questions:
                row += [ids[piece] for piece in question.pieces]
                at.append(len(row))
                row.append(ids[f" {question.answer}"])
            rows.append(torch.tensor(row))
            answers.append(at)
        batch = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
        features = model.model.get_video_features(pixels(np.stack([lesson.frames for lesson in drawn]))).pooler_output
        embedded = embed(model, batch, features)
        states = model.model.language_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
        row, at = torch.arange(len(rows)).repeat_interleave(QUESTIONS), torch.tensor(answers).flatten()
        logits, wanted = model.lm_head(states[row, at - 1]), batch[row, at]
        total = torch.nn.functional.cross_entropy(logits, wanted)
        said = torch.from_numpy(np.concatenate([lesson.said for lesson in drawn]))
        named = naming(features[:, :-1].flatten(0, 1), said, model.lm_head.weight, ids)
        optimiser.zero_grad()
        (total + NAMING * named).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        right = (logits.argmax(-1) == wanted).tolist()
        names = [" ".join(p.strip() for p in q.pieces[:1] + q.pieces[-2:-1]) for lesson in drawn for q in lesson.questions]
        for name, hit in zip(names, right, strict=True):
            tally.setdefault((frames, name), []).append(hit)
        losses += float(total.detach())
        names_loss += float(named.detach())
        if (step + 1) % 50 == 0 or step + 1 == steps:
            seconds = time.monotonic() - started
            left = seconds / (step + 1) * (steps - step - 1)
            print(f"step {step + 1}/{steps}  loss {losses / 50:.3f} naming {names_loss / 50:.3f}  {seconds:.0f} s, {left:.0f} s left", flush=True)
            for name in sorted({n for _, n in tally}):
                print(
                    f"    {name:12}",
                    "  ".join(f"{f}: {np.mean(tally[f, name]):.2f}" for f in lengths if (f, name) in tally),
                    flush=True,
                )
            tally, losses, names_loss = {}, 0.0, 0.0


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m workers.pretrain_video", description="Train the video model.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=1500, help="optimiser steps")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and of the clips")
    parser.add_argument("--kinds", nargs="+", default=list(clips.ClipsConfig().kinds))
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    chosen = parser.parse_args(arguments)
    torch.manual_seed(chosen.seed)
    tokenizer = build_tokenizer(clips.vocabulary(), (*SPECIAL, "<image>", MARK))
    model = build_model(tokenizer)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens", flush=True)
    train(model, tokenizer, chosen.steps, chosen.seed, tuple(chosen.kinds), tuple(chosen.lengths))
    model.save_pretrained(chosen.out)
    tokenizer.save_pretrained(chosen.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
