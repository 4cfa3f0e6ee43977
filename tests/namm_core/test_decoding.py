"""Answers are those of decoding token by token, row by row, and take fewer calls of the model."""

from __future__ import annotations

import math
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from namm_core import MemoryCache, Namm, NammConfig, policies
from namm_core.answering import Answer, answer
from tests.namm_core.architectures import CONFIGS

INTERVAL, LIMIT = 16, 12
LENGTHS = (76, 61, 70, 90)
"""Of prompts: memories are updated after 4, 3, 10 and 6 tokens more."""


def made(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation="sdpa").eval()


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return made("llama")


def prompt(length: int) -> Tensor:
    return torch.randint(1, 97, (length,), generator=torch.Generator().manual_seed(length))


def namm(rows: list[int]) -> Namm:
    thetas = 0.1 * torch.randn(2, 4172, generator=torch.Generator().manual_seed(5))
    return Namm(NammConfig(update_interval=INTERVAL), thetas[rows])


def memory(name: str, rows: list[int]):
    """A policy for rows of these candidates; None for the stock cache."""
    if name == "stock":
        return None
    if name == "namm":
        return namm(rows)
    return policies.named(name)(update_interval=INTERVAL, **({} if name == "full" else {"budget": 24}))


def opened(model: PreTrainedModel, policy):
    return nullcontext() if policy is None else MemoryCache(model, policy)


@torch.no_grad()
def plain(model: PreTrainedModel, fed: Tensor, reference: list[int] | None, policy, limit: int = LIMIT) -> tuple:
    """One row, one token a call: its greedy tokens, or those of `reference` fed; and the mean log-probability."""
    with opened(model, policy) as cache:
        past = DynamicCache(config=model.config) if cache is None else cache
        logits = model(fed[None], past_key_values=past, use_cache=True).logits[0, -1]
        found, sure = [], []
        for step in range(limit if reference is None else len(reference)):
            token = int(logits.argmax()) if reference is None else reference[step]
            found.append(token)
            sure.append(float(logits.log_softmax(-1)[token]))
            logits = model(torch.tensor([[token]]), past_key_values=past, use_cache=True).logits[0, -1]
    return found, sum(sure) / len(sure)


def cut(tokens: list[int], stop: tuple[int, ...], limit: int) -> list[int]:
    return tokens[: min((i for i, token in enumerate(tokens) if token in stop), default=limit)][:limit]


def other(token: int) -> int:
    return token % 96 + 1


def variants(right: list[int]) -> list[list[int]]:
    """References beside a row's own greedy tokens: parts of them, all and more, and with one token changed."""
    changed = [right[:i] + [other(right[i])] + right[i + 1 : i + 4] for i in (0, 1, 5)]
    return [right[:1], right[:3], right[:8], right, right + right[:4], *changed, [other(right[0])]]


def counted(model: PreTrainedModel, *arguments) -> tuple[list[Answer], int]:
    """The answers, and the calls behind those that read the prompt."""
    calls = []
    handle = model.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        prompts, references, policy, limits, stop = arguments
        with opened(model, policy) as cache:
            found = answer(model, prompts, references, cache, limits, stop)
        both = len(calls)
        with opened(model, policy) as cache:
            answer(model, prompts, [r[:1] for r in references], cache, 1)
    finally:
        handle.remove()
    return found, both - (len(calls) - both)


@pytest.mark.parametrize("name", ["stock", "full", "namm", "h2o", "streaming", "snapkv", "expected_attention"])
def test_answers_are_those_of_one_token_a_call(model, name):
    """Every kind of reference, prompts and references of unequal length in one call, with and without a stop token."""
    candidates = range(2) if name == "namm" else range(1)
    known = {(c, n): plain(model, prompt(n), None, memory(name, [c]))[0] for c in candidates for n in LENGTHS}
    for kind in range(len(variants([1] * LIMIT))):
        rows = [(c, n) for c in candidates for n in LENGTHS]
        # Rows of one call differ in kind too.
        references = {row: variants(known[row])[(kind + 3 * i) % 9] for i, row in enumerate(rows)}
        stop = () if kind % 3 == 0 else (known[rows[0]][6], known[rows[1]][2], known[rows[2]][9])
        limits = [LIMIT, 1, 4, LIMIT][kind % 4]
        with opened(model, memory(name, [c for c, _ in rows])) as cache:
            given = [prompt(n) for _, n in rows], [torch.tensor(references[row]) for row in rows]
            found = answer(model, *given, cache, limits, stop)
        for row, got in zip(rows, found, strict=True):
            assert got.tokens == cut(known[row], stop, limits)
            expected = plain(model, prompt(row[1]), references[row], memory(name, [row[0]]))[1]
            assert got.logprob == pytest.approx(expected, abs=1e-5)
        assert name in ("stock", "full") or all(kept < 1 for got in found for kept in got.kept)


@pytest.mark.parametrize("name", ["stock", "namm"])
def test_every_row_has_its_own_limit(model, name):
    known = [plain(model, prompt(n), None, memory(name, [0]))[0] for n in LENGTHS]
    references = [torch.tensor(tokens[:3]) for tokens in known]
    with opened(model, memory(name, [0] * 4)) as cache:
        found = answer(model, [prompt(n) for n in LENGTHS], references, cache, [1, 12, 3, 7])
    assert [got.tokens for got in found] == [known[0][:1], known[1], known[2][:3], known[3][:7]]


@pytest.mark.parametrize("name", ["stock", "namm"])
def test_several_answers_count_by_their_mean_probability(model, name):
    """Against one token a call; what the reference has between its answers is fed, not scored."""
    fed, reference, spans = prompt(76), list(range(3, 40)), ((0, 4), (9, 12), (30, 37))
    each = []
    for first, last in spans:
        before = plain(model, fed, reference[:first], memory(name, [0]))[1] * first if first else 0.0
        each.append((plain(model, fed, reference[:last], memory(name, [0]))[1] * last - before) / (last - first))
    with opened(model, memory(name, [0, 0])) as cache:
        given = [fed] * 2, [torch.tensor(reference)] * 2
        several, one = answer(model, *given, cache, 4, scored=[spans, ()])
    assert math.exp(several.logprob) == pytest.approx(sum(map(math.exp, each)) / 3, rel=1e-4)
    right = plain(model, fed, reference, memory(name, [0]))[1]
    assert one.logprob == pytest.approx(right, rel=1e-4) and one.tokens == several.tokens and len(one.tokens) == 4


def test_nothing_is_fed_that_no_answer_needs():
    """A prompt that leaves a model of learned positions no more room than its answer takes."""
    model = made("gpt2")
    fed = prompt(model.config.max_position_embeddings - 2)
    right = plain(model, fed, None, None, 2)[0]
    last = answer(model, [fed], [torch.tensor([*right, 5])], None, 3)[0].tokens
    assert last[:2] == right and len(last) == 3
    assert answer(model, [fed], [torch.tensor(last)], None, 3)[0].tokens == last


@pytest.mark.parametrize("name", ["stock", "namm"])
def test_prompts_may_be_embeddings(model, name):
    """As those of models with pictures are; what follows is ids."""
    right = plain(model, prompt(76), None, memory(name, [0]))[0]
    for reference in ([*right[:5], other(right[5])], right[:2]):
        with torch.no_grad(), opened(model, memory(name, [0])) as cache:
            given = [model.get_input_embeddings()(prompt(76))], [torch.tensor(reference)]
            assert answer(model, *given, cache, LIMIT)[0].tokens == right


@pytest.mark.parametrize("architecture", ["mistral", "gemma3"])
@pytest.mark.parametrize("name", ["stock", "namm"])
def test_layers_that_see_a_window(architecture, name):
    """Rows that leave their reference at different places see the same window as alone."""
    model, lengths = made(architecture), (76, 76)
    prompts = [prompt(76), prompt(77)[:76]]
    known = [plain(model, fed, None, memory(name, [0]))[0] for fed in prompts]
    for places in ((1, 6), (9, 0), (12, 4)):
        references = [tokens[:at] + [other(t) for t in tokens[at:]] for tokens, at in zip(known, places, strict=True)]
        with opened(model, memory(name, [0] * len(lengths))) as cache:
            found = answer(model, prompts, [torch.tensor(r) for r in references], cache, LIMIT)
        assert [got.tokens for got in found] == known
        for fed, reference, got in zip(prompts, references, found, strict=True):
            assert got.logprob == pytest.approx(plain(model, fed, reference, memory(name, [0]))[1], abs=1e-5)


@pytest.mark.parametrize("name", ["stock", "namm"])
def test_a_right_answer_takes_one_call(model, name):
    known = [plain(model, prompt(n), None, memory(name, [0]))[0] for n in LENGTHS]
    prompts, policy = [prompt(n) for n in LENGTHS], memory(name, [0] * 4)

    def calls(lengths, limits, stop=()):
        given = [torch.tensor(tokens[:n]) for tokens, n in zip(known, lengths, strict=True)]
        found, number = counted(model, prompts, given, policy, limits, stop)
        own = [limits] * 4 if isinstance(limits, int) else limits
        assert [got.tokens for got in found] == [cut(t, stop, n) for t, n in zip(known, own, strict=True)]
        return number

    assert calls([3, 3, 3, 3], 3) == 1
    assert calls([3, 1, 7, 5], [3, 1, 7, 5]) == 1  # no longer than its reference
    assert calls([3, 2, 7, 5], [4, 3, 8, 6]) == 1  # a token behind it
    assert calls([9, 12, 8, 5], 5) == 1  # references that are longer
    assert calls([1, 1, 1, 1], 1) == 0  # the prompt's own logits say all
    behind = tuple(tokens[4] for tokens in known)
    lengths = [len(cut(tokens, behind, LIMIT)) for tokens in known]
    assert min(lengths) > 0
    assert calls(lengths, LIMIT, behind) == 1  # stops behind it
    assert calls([n + 1 for n in lengths], LIMIT, behind) == 1  # the reference says so itself
    # One token and its stop: there is nothing to score, and greedy decoding feeds the token anyway.
    assert counted(model, prompts[:1], [torch.tensor(known[0][:1])], memory(name, [0]), 9, (known[0][1],))[1] == 1


@pytest.mark.parametrize("name", ["stock", "namm"])
def test_another_answer_is_decoded_from_its_first_other_token(model, name):
    right = plain(model, prompt(76), None, memory(name, [0]))[0]

    def calls(reference):
        found, number = counted(model, [prompt(76)], [torch.tensor(reference)], memory(name, [0]), LIMIT, ())
        assert found[0].tokens == right
        return number

    assert calls([other(right[0])]) == LIMIT - 1  # nothing to score: as without a reference
    assert calls([other(right[0]), *right[1:4]]) == LIMIT
    assert calls([*right[:5], other(right[5])]) == 1 + LIMIT - 6
    assert calls(right[:5]) == 1 + LIMIT - 6
