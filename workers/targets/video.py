"""Video-language models: frames and a question in, greedy text out, scored by the task's metric.

A sample's pictures are read once; what the vision tower makes of them is put into the prompt as embeddings, so that
the memory sees a prompt like any other. The only architecture served is LLaVA-OneVision.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import AutoModelForImageTextToText, LlavaOnevisionForConditionalGeneration, PreTrainedConfig

from namm_core import MemoryCache
from namm_core.answering import answer
from workers import models
from workers.array_cache import ArrayCache, content_key
from workers.config import EvaluatorConfig, ModelConfig
from workers.protocols import RowResult, Target
from workers.tasks.grading import graded
from workers.tasks.loading import load_tasks
from workers.tasks.prompt import Prompt, tokenise
from workers.tasks.video import MARK, VideoSample
from workers.timing import Timing, measure
from workers.unit import SampleRef

RECENT_BYTES = 2**28
"""Bytes of recent samples that a worker holds in memory: frames and embeddings."""
PROCESSORS = ("video_preprocessor_config.json", "preprocessor_config.json")
"""Files that say how the vision tower wants its frames; the first one that exists is read."""


@dataclass(frozen=True)
class VideoPrompt:
    """A sample ready for the model."""

    prompt: Prompt
    """Its tokens, with as many placeholders as the frames need."""
    frames: np.ndarray
    """(frames, height, width, 3) uint8."""
    videos: int
    """Number of videos, of equal length, that the frames make up; each has one more token after its frames."""

    @property
    def tokens(self) -> int:
        """Length of the prompt, pictures included."""
        return self.prompt.tokens

    @property
    def relevant(self) -> np.ndarray:
        """(relevant,) int32, positions of the tokens that an oracle keeps."""
        return self.prompt.relevant


class Video(Target[VideoPrompt]):
    """A video-language model from transformers."""

    model: LlavaOnevisionForConditionalGeneration

    def __init__(self, config: EvaluatorConfig, arrays: ArrayCache) -> None:
        """See `Target`; raises ValueError too for prompts that are cut, and for another kind of model or processor."""
        if config.prompt.max_tokens is not None:
            raise ValueError("prompt.max_tokens would cut a video in the middle: give fewer frames (tasks.frames)")
        self.config = config
        self.tasks = load_tasks(config.tasks)
        _check_kind(models.settings(config.model), config.model.path)
        model, self.tokenizer = models.load(config.model, AutoModelForImageTextToText)
        assert isinstance(model, LlavaOnevisionForConditionalGeneration)
        self.model = model
        found = (models.settings_file(config.model, name) for name in PROCESSORS)
        self._processor = next((settings for settings in found if settings), {})
        vision = model.config.vision_config
        assert isinstance(vision, PreTrainedConfig)
        self._pixels = Pixels.read(self._processor, vision.image_size)
        self._weights_digest = models.weights_digest(config.model.path, config.model.revision, config.model.gguf)
        self._tokenizer_digest = models.tokenizer_digest(self.tokenizer)
        self._tasks_digest = content_key("tasks", **config.tasks)
        self._chat = self.tokenizer.chat_template if config.prompt.chat_template else None
        self._recent: OrderedDict[SampleRef, tuple[VideoPrompt, Tensor | None]] = OrderedDict()
        self._recent_bytes = 0
        self.recent_most = RECENT_BYTES
        """Bytes of recent samples that are held at most, beside the newest."""
        ends = self.model.generation_config.eos_token_id
        self._ends = tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,)
        side = -(-(vision.image_size // vision.patch_size) // 2)  # the model halves each side of its features
        self.tokens_per_frame = side * side

    @staticmethod
    def check(config: ModelConfig) -> None:
        """See `Target.check`."""
        _check_kind(models.settings(config), config.path)

    def sample(self, ref: SampleRef) -> VideoPrompt:
        """The sample's frames and token ids, from this process if they are there, else made.

        Raises ValueError, one line, for a sample without a video, or whose frames do not fit its marks.
        """
        if ref in self._recent:
            self._recent.move_to_end(ref)
            return self._recent[ref][0]
        sample = self.tasks.sample(*ref)
        if not isinstance(sample, VideoSample):
            raise ValueError(f"tasks.source {self.config.tasks.get('source')} has no videos: choose one that has them")
        prompt = self._expanded(sample)
        self._hold(ref, prompt, None)
        return prompt

    def read(self, sample: VideoPrompt, cache: MemoryCache) -> None:
        """Feeds the prompt, pictures included, in one forward call."""
        self.model(inputs_embeds=self.embedded(sample)[None], past_key_values=cache, use_cache=True, logits_to_keep=1)

    def run(self, rows: list[VideoPrompt], cache: MemoryCache | None) -> list[RowResult]:
        """Answers the prompts greedily; a score is the task's metric."""
        prompts = [row.prompt for row in rows]
        answers = answer(
            self.model,
            [self.embedded(row) for row in rows],
            [torch.from_numpy(p.reference).long() for p in prompts],
            cache,
            [p.max_new_tokens for p in prompts],
            self._ends,
        )
        return graded(self.tasks, self.tokenizer, prompts, answers)

    def identity(self, refs: tuple[SampleRef, ...]) -> dict[str, Any]:
        """Weights and their arithmetic, how pictures are prepared, tokenizer, tasks, and how prompts are made."""
        model = self.config.model
        return {
            "model": [self._weights_digest, model.dtype, model.ntk_alpha, self.model.device.type],
            "pixels": dataclasses.asdict(self._pixels),
            "tokenizer": self._tokenizer_digest,
            "tasks": [self._tasks_digest, *(self.tasks.fingerprint(ref.task) for ref in refs)],
            "prompt": [dataclasses.asdict(self.config.prompt), self._chat],
        }

    def labels(self, sample: VideoPrompt) -> list[str]:
        """The tokens as text; a picture's tokens are called after their frame and their place in it."""
        labels: list[str] = []
        ids = sample.prompt.ids.tolist()
        length = len(sample.frames) // sample.videos * self.tokens_per_frame + 1
        at = 0
        for token in ids:
            if token != self.model.config.video_token_id:
                labels.append(str(self.tokenizer.decode([token])))
                continue
            video, place = divmod(at, length)
            frame = video * (len(sample.frames) // sample.videos) + place // self.tokens_per_frame
            labels.append(" |" if place == length - 1 else f" frame {frame}.{place % self.tokens_per_frame}")
            at += 1
        return labels

    def measure(self, sample: VideoPrompt, cache: MemoryCache | None, tokens: int) -> Timing:
        """See `Target.measure`; the vision tower's time is left out, being the same for every policy."""
        embedded = self.embedded(sample)
        return measure(self.model, torch.from_numpy(sample.prompt.ids).long(), cache, tokens, embedded)

    @torch.inference_mode()
    def embedded(self, sample: VideoPrompt) -> Tensor:
        """(tokens, size), the prompt as the language model reads it; computed once while the sample is held."""
        ref = sample.prompt.ref
        held = self._recent.get(ref)
        if held is not None and held[0] is sample and held[1] is not None:
            self._recent.move_to_end(ref)
            return held[1]
        ids = torch.from_numpy(sample.prompt.ids).long().to(self.model.device)
        embedding = self.model.get_input_embeddings()
        embedded: Tensor = embedding(ids)
        if len(sample.frames):
            pixels = self._pixels.of(sample.frames).to(self.model.device, self.model.dtype)
            videos = pixels.unflatten(0, (sample.videos, -1))
            features = self.model.get_video_features(videos).pooler_output
            pictures = (ids == self.model.config.video_token_id)[:, None]
            embedded = embedded.masked_scatter(pictures, features.flatten(0, 1).to(embedded.dtype))
        self._hold(ref, sample, embedded)
        return embedded

    def _expanded(self, sample: VideoSample) -> VideoPrompt:
        """The prompt of a sample, each mark replaced by as many placeholders as its frames need."""
        short = tokenise(sample, self.tokenizer, self.config.prompt)
        pictures = short.ids == self.model.config.video_token_id
        videos = int(pictures.sum())
        if videos == 0 or len(sample.frames) % videos:
            raise ValueError(
                f"{sample.task}: {len(sample.frames)} frames do not spread over the prompt's {videos} tokens {MARK}: "
                "one for all, or one for each; does the model's tokenizer know it?"
            )
        length = len(sample.frames) // videos * self.tokens_per_frame + 1
        times = np.where(pictures, length, 1)
        ids = np.repeat(short.ids, times)
        relevant = np.zeros(len(short.ids), bool)
        relevant[short.relevant] = True
        relevant = np.repeat(relevant & ~pictures, times)
        if sample.relevant and sample.evidence:
            own = np.zeros((len(sample.frames), self.tokens_per_frame), bool)
            own[list(sample.evidence)] = True
            ends = np.ones((videos, 1), bool)
            relevant[np.repeat(pictures, times)] = np.hstack([own.reshape(videos, -1), ends]).ravel()
        else:
            relevant[:] = False
        prompt = dataclasses.replace(short, ids=ids, relevant=np.flatnonzero(relevant).astype(np.int32))
        return VideoPrompt(prompt, sample.frames, videos)

    def _hold(self, ref: SampleRef, prompt: VideoPrompt, embedded: Tensor | None) -> None:
        if ref in self._recent:
            self._recent_bytes -= _nbytes(*self._recent.pop(ref))
        self._recent[ref] = prompt, embedded
        self._recent_bytes += _nbytes(prompt, embedded)
        while self._recent_bytes > self.recent_most and len(self._recent) > 1:
            self._recent_bytes -= _nbytes(*self._recent.popitem(last=False)[1])


@dataclass(frozen=True)
class Pixels:
    """How frames are prepared for a vision tower: resized to a square, then (value / 255 - mean) / std."""

    side: int
    """Side of the square, in pixels."""
    mean: tuple[float, ...]
    """Mean of each colour."""
    std: tuple[float, ...]
    """Standard deviation of each colour."""

    @classmethod
    def read(cls, settings: dict[str, Any], side: int) -> Pixels:
        """From a processor's settings; side: what the vision tower takes. Raises ValueError, one line, if they ask for
        anything else."""
        size = settings.get("size") or {"height": side, "width": side}
        if size != {"height": side, "width": side}:
            raise ValueError(f"the model's processor asks for frames of {size}, its vision tower for {side} x {side}")
        if settings.get("rescale_factor", 1 / 255) != 1 / 255 or settings.get("do_center_crop", False):
            raise ValueError("the model's processor rescales by another factor than 1/255, or crops: not served")
        given = (settings.get(name) or [0.5, 0.5, 0.5] for name in ("image_mean", "image_std"))
        mean, std = (tuple(map(float, values)) for values in given)
        return cls(side, mean, std)

    def of(self, frames: np.ndarray) -> Tensor:
        """(frames, height, width, 3) uint8 -> (frames, 3, side, side) float32."""
        pixels = torch.from_numpy(frames).movedim(-1, 1).float()
        if pixels.shape[-2:] != (self.side, self.side):
            pixels = interpolate(pixels, size=(self.side, self.side), mode="bicubic", antialias=True)
            pixels = pixels.round().clamp(0, 255)
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (pixels / 255 - mean) / std


def _check_kind(settings: PreTrainedConfig, path: str) -> None:
    if settings.model_type != "llava_onevision":
        raise ValueError(f"the model {path} is a {settings.model_type}: target video serves llava_onevision")


def _nbytes(prompt: VideoPrompt, embedded: Tensor | None) -> int:
    return prompt.frames.nbytes + (0 if embedded is None else embedded.nbytes)
