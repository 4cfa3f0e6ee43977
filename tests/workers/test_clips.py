"""Clips: what they show and ask, the same everywhere, and no clip in two splits."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from workers.tasks import SPLITS
from workers.tasks.loading import load_tasks
from workers.tasks.sources.clips import COLOURS, KINDS, NUMBERS, SHAPES, SIDE, TIMES, ClipsConfig, ClipsTasks
from workers.tasks.video import MARK


def digest(sample) -> str:
    return hashlib.sha256(sample.frames.tobytes() + sample.prompt.encode()).hexdigest()


RECORDED = {
    "colour": "edb65eef72ad",
    "shape": "aefe62dacc30",
    "when": "247ab48ee65f",
    "latest": "a868d1b22b8f",
    "first": "18ce763fb09a",
    "count": "1b69637ce28a",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_is_a_pure_function_of_config_and_arguments(kind):
    config = ClipsConfig(frames=24, kinds=(kind,))
    first, again = ClipsTasks(config), ClipsTasks(config)
    again.sample(kind, "heldout", 7)
    assert first.sample(kind, "train", 3) == again.sample(kind, "train", 3)
    assert digest(first.sample(kind, "train", 3)) == digest(again.sample(kind, "train", 3))
    other = ClipsTasks(ClipsConfig(frames=24, kinds=(kind,), seed=1))
    assert digest(first.sample(kind, "train", 3)) != digest(other.sample(kind, "train", 3))


def test_a_clip_is_the_same_on_every_machine_and_version():
    """The digests were recorded once: the shipped model, and every journal, stand on these very pictures."""
    tasks = load_tasks({"source": "clips", "frames": 24})
    assert [digest(tasks.sample(kind, "train", 0))[:12] for kind in RECORDED] == list(RECORDED.values())


@pytest.mark.parametrize("kind", KINDS)
def test_splits_share_no_clip(kind):
    tasks = ClipsTasks(ClipsConfig(frames=16, kinds=(kind,)))
    clips = {split: {digest(tasks.sample(kind, split, i)) for i in range(20)} for split in SPLITS}
    assert all(len(found) == 20 for found in clips.values())
    assert len(set.union(*clips.values())) == 60


@pytest.mark.parametrize("kind", KINDS)
def test_the_evidence_shows_the_answer_and_no_other_frame_does(kind):
    """Read back from the pictures alone: a frame shows a colour where enough of its pixels have just that colour."""
    tasks = ClipsTasks(ClipsConfig(kinds=(kind,)))
    for index in range(10):
        sample = tasks.sample(kind, "train", index)
        assert sample.frames.shape == (96, SIDE, SIDE, 3) and sample.frames.dtype == np.uint8
        assert sample.answers[0] in sample.choices and sample.prompt.count(MARK) == 1
        shown = {c: (sample.frames == np.uint8(rgb)).all(-1).sum((1, 2)) > 20 for c, rgb in COLOURS.items()}
        seen = np.flatnonzero(np.any(list(shown.values()), axis=0))
        assert set(sample.evidence) <= set(seen.tolist()) and len(seen) == 12
        answer = sample.answers[0]
        if sample.choices == tuple(COLOURS):
            assert shown[answer][list(sample.evidence)].all()
        elif sample.choices == tuple(TIMES):
            assert sample.evidence[0] * 4 // 96 == list(TIMES).index(answer)
        elif sample.choices == NUMBERS:
            assert len(sample.evidence) == 2 * (NUMBERS.index(answer) + 1)
        else:
            assert sample.choices == tuple(SHAPES)
            asked = next(colour for colour in COLOURS if sample.prompt.endswith(f" {colour}?"))
            assert np.flatnonzero(shown[asked]).tolist() == list(sample.evidence)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"kinds": ["colors"]}, "colors"),
        ({"events": 0}, "events"),
        ({"frames": 8}, "frames"),
        ({"specks": 2}, "specks"),
        ({"side": 64}, "side"),
    ],
)
def test_a_wrong_setting_is_named(given, named):
    with pytest.raises(ValueError, match=named) as error:
        load_tasks({"source": "clips", **given})
    assert "\n" not in str(error.value)
