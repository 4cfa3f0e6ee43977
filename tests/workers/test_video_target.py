"""The video target on the shipped model: what a memory is placed in is the stock model, and rows are independent."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from namm_core import MemoryCache, Namm, NammConfig
from namm_core.answering import prefill
from namm_core.policies import Full
from workers.array_cache import ArrayCache
from workers.config import EvaluatorConfig, ModelConfig, PromptConfig
from workers.evaluator import Evaluator
from workers.targets import find
from workers.targets.video import Pixels, Video, VideoPrompt
from workers.tasks.sources.clips import ClipsConfig, ClipsTasks
from workers.tasks.video import MARK, VideoSample
from workers.unit import PolicySpec, SampleRef, Unit

FOLDER = Path(__file__).parents[2] / "models" / "clips-small"
TASKS = {"source": "clips", "frames": 14, "events": 3}
MEMORY = NammConfig(update_interval=64)


def config(folder=FOLDER, tasks=TASKS, **prompt) -> EvaluatorConfig:
    return EvaluatorConfig(ModelConfig(str(folder)), tasks, MEMORY, prompt=PromptConfig(**prompt), target="video")


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    return Evaluator(config())


@pytest.fixture(scope="module")
def target(evaluator) -> Video:
    return evaluator.target


@pytest.fixture(scope="module")
def rows(target) -> list[VideoPrompt]:
    """Clips of 14, 9 and 14 frames."""
    shorter = ClipsTasks(ClipsConfig(frames=9, events=3)).sample("shape", "train", 1)
    return [
        target.sample(SampleRef("colour", "train", 0)),
        target._expanded(shorter),
        target.sample(SampleRef("when", "train", 2)),
    ]


def stock(target: Video, row: VideoPrompt) -> torch.Tensor:
    """Logits (tokens, vocabulary) of the stock model, which is given the pictures themselves."""
    pixels = torch.from_numpy(row.frames).movedim(-1, 1).float()[None] / 127.5 - 1
    ids = torch.from_numpy(row.prompt.ids).long()[None]
    return target.model(input_ids=ids, pixel_values_videos=pixels, use_cache=False).logits[0]


def test_it_is_found_by_name():
    assert find("video") is Video


def test_a_prompt_has_the_stock_models_placeholders(target, rows):
    for row in rows:
        video = target.model.config.video_token_id
        assert (
            (row.prompt.ids == video).sum() == len(row.frames) * 16 + 1 == target.tokens_per_frame * len(row.frames) + 1
        )
        assert row.tokens == len(row.prompt.ids) > len(row.frames) * 16
        labels = target.labels(row)
        assert len(labels) == row.tokens and labels[1] == " frame 0.0" and labels[17] == " frame 1.0"


KEEPERS = {"full": Full(update_interval=64), "namm": Namm(MEMORY, np.r_[np.zeros(4171), 9.0].astype(np.float32))}


@pytest.mark.parametrize("name", KEEPERS)
@torch.inference_mode()
def test_a_memory_that_keeps_all_gives_the_stock_models_logits_in_a_batch_of_unequal_rows(target, rows, name):
    alone = [stock(target, row) for row in rows]
    with MemoryCache(target.model, KEEPERS[name]) as cache:
        last, _ = prefill(target.model, [target.embedded(row) for row in rows], cache)
        assert cache.kept_fractions() == [[1.0] * len(cache.layers)] * len(rows)
    for logits, row in zip(last, alone, strict=True):
        assert (logits - row[-1]).abs().max() < 1e-5


@torch.inference_mode()
def test_all_logits_of_one_prompt_are_the_stock_models(target, rows):
    with MemoryCache(target.model, Full(update_interval=64)) as cache:
        embedded = target.embedded(rows[0])[None]
        logits = target.model(inputs_embeds=embedded, past_key_values=cache, use_cache=True).logits[0]
    assert (logits - stock(target, rows[0])).abs().max() < 1e-5


@torch.inference_mode()
def test_one_mark_a_frame_is_as_many_videos_of_the_stock_model(target, rows):
    frames = rows[1].frames[:3]
    text = f"Clip:{MARK} the{MARK} a{MARK}\nWhat colour was the circle?"
    sample = VideoSample("t", "train", 0, text, ("red",), (), frames=frames)
    row = target._expanded(sample)
    assert row.videos == 3
    pixels = torch.from_numpy(frames).movedim(-1, 1).float()[:, None] / 127.5 - 1
    ids = torch.from_numpy(row.prompt.ids).long()[None]
    wanted = target.model(input_ids=ids, pixel_values_videos=pixels, use_cache=False).logits[0]
    got = target.model(inputs_embeds=target.embedded(row)[None], use_cache=False).logits[0]
    assert (got - wanted).abs().max() < 1e-5
    assert target.labels(row)[1 + 17 + 1] == " frame 1.0"


def test_a_row_does_not_depend_on_its_batch_mates(target, rows):
    theta = (np.random.default_rng(0).standard_normal(4172) * 0.1).astype(np.float32)

    def outcomes(batch):
        with MemoryCache(target.model, Namm(MEMORY, theta)) as cache:
            return target.run(batch, cache)

    together = outcomes(rows)
    assert any(min(outcome.kept) < 1 for outcome in together)
    for row, got in zip(rows, together, strict=True):
        (alone,) = outcomes([row])
        assert (alone.score, alone.prediction, alone.kept) == (got.score, got.prediction, pytest.approx(got.kept))
        assert alone.logprob == pytest.approx(got.logprob, abs=1e-4)


def test_pictures_are_read_once_for_all_candidates(evaluator, target):
    calls = []
    hook = target.model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    refs = (SampleRef("colour", "train", 7), SampleRef("when", "train", 7))
    thetas = [(np.random.default_rng(i).standard_normal(4172) * 0.1).astype(np.float32) for i in range(3)]
    evaluator.evaluate(Unit(tuple(PolicySpec("namm", theta) for theta in thetas), refs))
    evaluator.evaluate(Unit((PolicySpec("full"),), refs))
    hook.remove()
    assert len(calls) == len(refs)


def test_what_is_held_of_recent_samples_is_bounded(target):
    most, target.recent_most = target.recent_most, 400_000
    for i in range(12):
        target.embedded(target.sample(SampleRef("colour", "train", 100 + i)))
    assert target._recent_bytes <= 400_000
    assert target._recent_bytes == sum(
        p.frames.nbytes + (0 if e is None else e.nbytes) for p, e in target._recent.values()
    )
    target.recent_most = most


def test_an_oracle_keeps_the_frames_that_hold_the_evidence(target):
    sample = target.tasks.sample("colour", "train", 0)
    shown = target.sample(SampleRef("colour", "train", 0))
    places = [label for i, label in enumerate(target.labels(shown)) if i in set(shown.relevant.tolist())]
    frames = sorted({int(place.split()[1].split(".")[0]) for place in places if place.startswith(" frame ")})
    assert tuple(frames) == sample.evidence
    rest = "".join(place for place in places if not place.startswith(" frame "))
    assert rest == "Clip: |" + sample.prompt.split(MARK)[1]


def test_the_shipped_model_answers(evaluator):
    """Short clips, as in training, and the same with an oracle; guessing scores 0.13 to 0.25."""
    refs = [SampleRef(kind, "validation", i) for kind in evaluator.target.tasks.tasks for i in range(4)]
    for policy in (PolicySpec("full"), PolicySpec("oracle")):
        results = [evaluator.evaluate(Unit((policy,), (ref,)))[0][0] for ref in refs]
        assert np.mean([r.score for r in results]) >= 0.7
        for ref, r in zip(refs, results, strict=True):
            assert r.score == float(r.prediction == evaluator.target.tasks.sample(*ref).answers[0])


def test_a_chat_template_goes_around_frames_and_question(target):
    sample = target.tasks.sample("colour", "train", 0)
    target.tokenizer.chat_template = (
        "{% for m in messages %}Clip:{% for part in m['content'] %}{{ '\n' + part['text'] }}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '\nWhat' }}{% endif %}"
    )
    try:
        with_chat = dataclasses.replace(target.config, prompt=PromptConfig(chat_template=True))
        target.config, before = with_chat, target.config
        row = target._expanded(sample)
    finally:
        target.tokenizer.chat_template, target.config = None, before
    plain = target._expanded(sample)
    text = target.tokenizer.decode([i for i in row.prompt.ids.tolist() if i != target.model.config.video_token_id])
    assert text == "Clip:\n" + sample.prompt.replace(MARK, "") + "\nWhat"
    assert row.tokens == plain.tokens + 3 and len(row.relevant) == len(plain.relevant)


def test_frames_of_another_size_are_resized_and_normalised():
    frames = np.full((2, 20, 30, 3), 51, np.uint8)
    settings = {"size": {"height": 8, "width": 8}, "image_mean": [0.2, 0.1, 0], "image_std": [0.5, 0.5, 1]}
    pixels = Pixels.read(settings, 8).of(frames)
    assert pixels.shape == (2, 3, 8, 8)
    assert torch.allclose(pixels[0, :, 0, 0], torch.tensor([0.0, 0.2, 0.2]), atol=1e-6)


def test_what_cannot_be_served_is_said_in_one_line(tmp_path, small_model):
    def refused(message, given):
        with pytest.raises(ValueError, match=message) as error:
            Video(given, ArrayCache(None))
        assert "\n" not in str(error.value)

    refused("is a llama: target video serves", config(small_model))
    with pytest.raises(ValueError, match="is a llama"):
        Video.check(ModelConfig(str(small_model)))
    refused("max_tokens", config(max_tokens=100))
    folder = tmp_path / "model"
    shutil.copytree(FOLDER, folder)
    file = folder / "video_preprocessor_config.json"
    file.write_text(json.dumps({"size": {"height": 384, "width": 384}}))
    refused("384", config(folder))
    file.write_text('{"size": ')
    refused("video_preprocessor_config.json cannot be read", config(folder))
    other = Video(config(tasks={"source": "recall"}), ArrayCache(None))
    with pytest.raises(ValueError, match="recall has no videos"):
        other.sample(SampleRef("residence", "train", 0))


def test_another_stretch_or_other_pictures_are_other_base_scores(target, tmp_path):
    refs = (SampleRef("colour", "train", 0),)
    stretched = dataclasses.replace(config(), model=ModelConfig(str(FOLDER), ntk_alpha=4))
    assert Video(stretched, ArrayCache(None)).identity(refs) != target.identity(refs)
    assert Video(config(), ArrayCache(None)).identity(refs) == target.identity(refs)
