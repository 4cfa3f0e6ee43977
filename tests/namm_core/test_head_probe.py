"""What a head is worth beyond its window, against stock attention under a mask of its own."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from namm_core import head_probe
from tests.tiny_models import tiny_llama

TOKENS, WINDOW, SINKS = 48, 8, 2
SPANS = [(40, 43), (45, 48)]


def _ids(model) -> torch.Tensor:
    return torch.randint(0, model.config.vocab_size, (TOKENS,), generator=torch.Generator().manual_seed(3))


def _sureness(model, ids: torch.Tensor, mask: torch.Tensor) -> float:
    with torch.no_grad():
        sure = model(ids[None], attention_mask=mask).logits[0].log_softmax(-1)
    return sum(sum(sure[at - 1, ids[at]].item() for at in range(*span)) / 3 for span in SPANS) / 2


@pytest.mark.parametrize("far", [None, [[True, False]], [[False, False]]])
def test_worths_are_those_of_stock_attention_that_hides_the_far_tokens(far):
    model = tiny_llama(num_hidden_layers=1)
    heads, groups = (
        model.config.num_key_value_heads,
        model.config.num_attention_heads // model.config.num_key_value_heads,
    )
    ids, at = _ids(model), torch.arange(TOKENS)
    sees_far = torch.ones(1, heads, dtype=torch.bool) if far is None else torch.tensor(far)
    found = head_probe.worths(model, ids, SPANS, WINDOW, None if far is None else sees_far, SINKS)
    causal = at[None] <= at[:, None]
    near = causal & ((at[None] < SINKS) | (at[None] > at[:, None] - WINDOW))
    model.set_attn_implementation("eager")

    def seen(changed: int, to: bool) -> float:
        sides = [to if head == changed else bool(sees_far[0, head]) for head in range(heads)]
        sees = torch.stack([causal if sides[head // groups] else near for head in range(heads * groups)])
        return _sureness(model, ids, torch.zeros(sees.shape).masked_fill(~sees, -1e30)[None])

    wanted = [seen(head, True) - seen(head, False) for head in range(heads)]
    assert found.shape == (1, heads) and max(map(abs, wanted)) > 1e-4
    assert found[0].tolist() == pytest.approx(wanted, abs=1e-5)


def test_a_window_over_all_costs_nothing_and_the_model_is_as_before():
    model = tiny_llama()
    before = model.config._attn_implementation
    assert head_probe.worths(model, _ids(model), SPANS, TOKENS).abs().max() < 1e-6
    assert model.config._attn_implementation == before and not head_probe._near


def test_shares_follow_what_a_head_is_worth_and_none_is_nothing():
    shares = head_probe.log_shares(torch.tensor([[0.297, 0.0, -0.1]]), least=0.003).exp()[0]
    assert shares.tolist() == pytest.approx([0.3, 0.003, 0.003])


def test_layers_that_slide_are_refused():
    config = Qwen2Config(hidden_size=32, intermediate_size=48, num_hidden_layers=2, vocab_size=97, sliding_window=16)
    config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(ValueError, match="do not see the whole text"):
        head_probe.worths(Qwen2ForCausalLM(config), torch.arange(TOKENS), SPANS, WINDOW)
