"""The policies against `kvpress`, an implementation by others of the same papers, on the same tensors.

Equal sets stay but for two things: the newest token, which is forced here, and scores that are equal to rounding. What
differs on purpose is listed in docs/policies.md.
"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from namm_core import MemoryCache
from namm_core.policies import H2O, L2, TOVA, ExpectedAttention, KeyDiff, SnapKV, Streaming
from tests import kvpress_wheels
from tests.namm_core import kvpress_scores
from tests.namm_core.kvpress_scores import KEPT, ROWS, TOKENS

ROUNDING = 1e-4
"""Relative to the lowest score that stays: closer ones are equal."""
SIZE = {"budget": KEPT, "update_interval": TOKENS}
SNAPKV = {"window": 64, "kernel": 5, "pooling": "avg"}
PRESSES = {
    "knorm": L2(**SIZE),
    "keydiff": KeyDiff(**SIZE),
    "streaming_llm": Streaming(**SIZE, sinks=4),
    "snapkv": SnapKV(**SIZE, **SNAPKV),
    "tova": TOVA(**SIZE),
    "expected_attention": ExpectedAttention(**SIZE, epsilon=0.0),
    "expected_attention_epsilon": ExpectedAttention(**SIZE, epsilon=0.01),
    "observed_attention": H2O(**SIZE, recent=0, per_query=True),
}
ADAPTIVE = {
    "adakv_keydiff": KeyDiff(**SIZE, over="layer"),
    "adakv_expected_attention": ExpectedAttention(**SIZE, epsilon=0.0, over="layer"),
    "adakv_snapkv": SnapKV(**SIZE, **SNAPKV, over="layer"),
}


@pytest.fixture(scope="module")
def scores(tmp_path_factory) -> dict[str, torch.Tensor]:
    """What kvpress says, by press and layer."""
    place = tmp_path_factory.mktemp("kvpress")
    file = place / "scores.safetensors"
    done = kvpress_wheels.run(kvpress_wheels.fetched(place), "-m", kvpress_scores.__name__, str(file))
    assert done.returncode == 0, done.stderr
    return load_file(file)


def kept(policy) -> torch.Tensor:
    """(layers, rows, kv_heads, tokens) bool: what is left of the text after one update at its end."""
    model = kvpress_scores.model()
    with MemoryCache(model, policy) as cache, torch.inference_mode():
        model(kvpress_scores.text(), past_key_values=cache)
        layers = [cache.kept_positions(layer) for layer in range(len(cache.layers))]
    found = torch.zeros(len(layers), ROWS, len(layers[0][0]), TOKENS, dtype=torch.bool)
    for layer, rows in enumerate(layers):
        for row, heads in enumerate(rows):
            for head, positions in enumerate(heads):
                found[layer, row, head, positions] = True
    return found


@pytest.mark.parametrize("name", PRESSES)
def test_the_same_tokens_stay_as_in_kvpress(scores, name):
    undecided = 0
    for layer, ours in enumerate(kept(PRESSES[name])):
        theirs = scores[f"{name}.{layer}"]
        assert ours.sum(-1).unique().tolist() == [KEPT]
        forced = theirs.clone()
        forced[..., -1] = theirs.amax() + 1  # the newest token
        bound = forced.topk(KEPT, dim=-1).values[..., -1:]
        room = ROUNDING * bound.abs()
        if name == "streaming_llm":  # it says yes or no
            assert torch.equal(ours, forced > 0)
            continue
        assert bool(ours[forced > bound + room].all()), f"layer {layer}: kvpress keeps more"
        assert not bool(ours[forced < bound - room].any()), f"layer {layer}: kvpress keeps less"
        undecided += int(((forced - bound).abs() <= room).sum()) - theirs.shape[:2].numel()
    assert undecided <= 3, "so many ties that nothing was compared"


@pytest.mark.parametrize("name", ADAPTIVE)
def test_the_same_tokens_stay_where_heads_share_a_budget(scores, name):
    """AdaKV without its safeguard; a token that is kept here because it is the newest takes the place of another."""
    shared = 0
    for layer, ours in enumerate(kept(ADAPTIVE[name])):
        theirs = scores[f"{name}.{layer}"].bool()
        assert ours.flatten(1).sum(-1).tolist() == theirs.flatten(1).sum(-1).tolist()
        assert not bool((theirs & ~ours)[..., -1].any())
        swapped = (ours & ~theirs)[..., :-1].flatten(1).sum(-1)
        assert int(swapped.max()) <= 1, f"layer {layer}"  # scores that are equal to rounding
        forced = (ours & ~theirs)[..., -1].sum(-1)
        assert torch.equal((theirs & ~ours).flatten(1).sum(-1), forced + swapped)
        shared += int((ours.sum(-1) != KEPT).any())
    assert shared, "every head kept as many: nothing was shared"
