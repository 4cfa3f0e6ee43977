"""What `namm inspect` measures, against computations of another kind."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from namm_core import FeatureStatistics, MemoryCache, Namm, NammConfig
from namm_core.protocols import Entries
from namm_core.scoring import scorer
from namm_core.scoring.backward_attention import BLOCK
from namm_core.sensitivity import own_derivatives
from workers.config import EvaluatorConfig, ModelConfig, PromptConfig
from workers.evaluator import Evaluator
from workers.inspection import inspect
from workers.unit import PolicySpec, SampleRef

TASKS = {"source": "recall", "tokens": 100, "facts": 4, "topic_words": 6, "kinds": ["residence", "topic"]}
REFS = [SampleRef("residence", "heldout", 0), SampleRef("topic", "heldout", 1)]


@pytest.fixture(scope="module")
def evaluator(small_model) -> Evaluator:
    return Evaluator(EvaluatorConfig(ModelConfig(str(small_model)), TASKS, NammConfig(update_interval=32)))


@pytest.fixture(scope="module")
def namm(evaluator) -> Namm:
    theta = torch.randn(4172, generator=torch.Generator().manual_seed(5)) * 0.1
    return Namm(evaluator.config.memory, theta, FeatureStatistics(*evaluator.statistics(REFS)))


@pytest.fixture(scope="module")
def seen(evaluator, namm):
    return inspect(evaluator, namm, REFS)


def test_held_tokens_are_those_of_the_memory_itself(evaluator, namm, seen):
    statistics = (namm.statistics.mean.numpy(), namm.statistics.var.numpy(), namm.statistics.count)
    spec = PolicySpec("namm", theta=namm.theta.numpy(), statistics=statistics)
    for ref, reading in zip(REFS, seen[0], strict=True):
        other = evaluator.reading(spec, ref)
        assert reading.tokens == other.tokens and (reading.relevant == other.relevant).all()
        assert reading.held.shape == (3, 2, 100) and 0.1 < other.held.mean() < 0.95
        assert (reading.held == other.held).all() and reading.kinds == other.kinds
        assert reading.judged == 96 and reading.held[:, :, 96:].all()


def test_kinds_are_facts_question_and_filler(seen):
    residence, topic = seen[0]
    for i, (token, kind) in enumerate(zip(residence.tokens, residence.kinds, strict=True)):
        last_line = i >= max(j for j, text in enumerate(residence.tokens) if "\n" in text)
        stop_of_fact = token == "." and ":" in residence.tokens[i - 1] and i > 1
        fact = (":" in token and i > 0) or stop_of_fact
        assert kind == ("question" if last_line else "facts" if fact else "filler"), (i, token)
    assert residence.kinds.count("facts") == 2 * TASKS["facts"]
    assert topic.kinds.count("facts") >= 3 * TASKS["topic_words"]  # whole sentences


def test_kinds_follow_the_tokens_of_a_prompt_that_is_cut(small_model):
    """As in `middle_truncated`: the first and the last 40 tokens stay."""
    prompt = PromptConfig(max_tokens=80)
    config = EvaluatorConfig(ModelConfig(str(small_model)), TASKS, NammConfig(update_interval=32), prompt=prompt)
    (reading,), _ = inspect(Evaluator(config), Namm(NammConfig(update_interval=32)), REFS[:1])
    assert len(reading.tokens) == len(reading.kinds) == 80
    assert all((":" in t) <= (k == "facts") for t, k in zip(reading.tokens[1:], reading.kinds[1:], strict=True))
    assert reading.kinds[-3:] == ["question"] * 3 and "facts" in reading.kinds


class Recorder(Namm):
    """Notes what its scorer was shown."""

    def __init__(self, namm: Namm) -> None:
        super().__init__(namm.config, namm.theta, namm.statistics)
        self.shown: list[tuple[int, torch.Tensor]] = []

    def keep(self, state, view):
        self.shown.append((view.layer, self.embeddings(state, view)))
        return super().keep(state, view)


def test_sensitivity_is_the_mean_of_derivatives_taken_one_by_one(evaluator, namm, seen):
    """Each score alone, through the real scorer; its derivative by its own features; absolute values, averaged."""
    recorder = Recorder(namm)
    weights = scorer.unpack(namm.config, namm.theta[None])
    for ref in REFS:
        with MemoryCache(evaluator.target.model, recorder) as cache, torch.no_grad():
            evaluator.target.model(
                torch.from_numpy(evaluator.target.sample(ref).ids).long()[None], past_key_values=cache
            )
    sums, counts = np.zeros((3, 25)), np.zeros(3)
    for layer, embeddings in recorder.shown:
        for head in embeddings[0]:  # columns of heads that hold fewer are padding: their features are those of no token
            x = head[None, None].flip(2).clone().requires_grad_()
            scores = scorer.score(namm.config, weights, x)[0, 0]
            for i in range(1, len(scores)):
                own = torch.autograd.grad(scores[i], x, retain_graph=True)[0][0, 0, i]
                if _is_token(namm, head.flip(0)[i]):
                    sums[layer] += own.abs().numpy()
                    counts[layer] += 1
    assert seen[1].tokens == counts.min()
    np.testing.assert_allclose(seen[1].layers, sums / counts[:, None], rtol=1e-3, atol=1e-6)


def _is_token(namm: Namm, embedding: torch.Tensor) -> bool:
    """Padding has no spectrogram and age 0, which real tokens but the newest do not have."""
    nothing = namm.statistics.normalise(torch.zeros(17))
    return not torch.allclose(embedding[8:], nothing, atol=1e-7)


@pytest.mark.parametrize(("scorer_name", "tokens"), [("bam", 40), ("bam", BLOCK + 30), ("mlp", 40)])
def test_own_derivatives_against_finite_differences(scorer_name, tokens):
    random = torch.Generator().manual_seed(2)
    config = NammConfig(scorer=scorer_name)
    namm = Namm(config, torch.randn(scorer.num_parameters(config), generator=random) * 0.2)
    state = {"average": torch.rand(1, 2, 17, tokens, generator=random)}
    positions = torch.arange(tokens)[None, None].expand(1, 2, -1) * 3
    newest, row = torch.tensor([3 * tokens - 3]), torch.zeros(1, dtype=torch.int64)
    view = Entries(positions=positions, newest=newest, row=row)
    found = own_derivatives(namm, state, view)
    weights = {name: w.double() for name, w in scorer.unpack(namm.config, namm.theta[None]).items()}
    embeddings = namm.embeddings(state, view).double()

    def score(head: int, i: int, feature: int, step: float) -> float:
        moved = embeddings.clone()
        moved[0, head, i, feature] += step
        return float(scorer.score(namm.config, weights, moved.flip(2)).flip(2)[0, head, i])

    for head, i, feature in [(0, 0, 0), (1, 5, 7), (0, tokens - 1, 8), (1, tokens - 1, 24), (0, tokens // 2, 12)]:
        slope = (score(head, i, feature, 1e-4) - score(head, i, feature, -1e-4)) / 2e-4
        assert float(found[0, head, i, feature]) == pytest.approx(slope, rel=1e-3, abs=1e-5)


def test_what_cannot_be_looked_into_is_said(evaluator, namm):
    with pytest.raises(ValueError, match="no prompt reaches one update"):
        inspect(evaluator, Namm(NammConfig(update_interval=128)), REFS[:1])
    with pytest.raises(ValueError, match="one NAMM"):
        own_derivatives(Namm(NammConfig(), torch.zeros(2, 4172)), {}, None)
