"""Copies of a memory: they share model and policy, own or share their content, keep their guards, and can be stored."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch

from namm_core import MemoryCache
from namm_core.policies import H2O, Full, SnapKV, Streaming
from tests.namm_core.matrix import CACHE, namm
from tests.tiny_models import tiny_llama

POLICIES = {
    "full": lambda: Full(16),
    "streaming": lambda: Streaming(16, 16),
    "h2o": lambda: H2O(16, 16),
    "snapkv": lambda: SnapKV(16, 16),
    "padded namm": lambda: namm("padded"),
    "ragged namm": lambda: namm("ragged"),
}
COPIES = {"deepcopy": copy.deepcopy, "fork": lambda cache: cache.fork(), "copy": copy.copy}


def text(length: int, seed: int = 1, rows: int = 2) -> torch.Tensor:
    return torch.randint(1, 97, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=POLICIES)
def read(request):
    """A model, and a memory that has read a text and a little more in a second call."""
    model = tiny_llama()
    with MemoryCache(model, POLICIES[request.param]()) as cache, torch.no_grad():
        model(text(70), **{CACHE: cache})
        model(text(5, 2), **{CACHE: cache})
        yield model, cache


def held(cache) -> list[torch.Tensor]:
    return [tensor for layer in cache.layers for tensor in (*layer.stored.main(), *layer.stored.beside())]


def go_on(model, cache, seed: int) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model(piece, **{CACHE: cache}).logits for piece in text(40, seed).split(13, dim=1)], dim=1)


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_goes_on_by_itself(read, way):
    """Three copies and the original go on differently, each as a memory that read the text alone, to the bit."""
    model, cache = read
    twins = [COPIES[way](cache) for _ in range(3)]
    before = [tensor.clone() for tensor in held(cache)]
    for seed, twin in enumerate(twins):
        with MemoryCache(model, cache.policy) as alone, torch.no_grad():
            model(text(70), **{CACHE: alone})
            model(text(5, 2), **{CACHE: alone})
            wanted = go_on(model, alone, seed)
        assert torch.equal(go_on(model, twin, seed), wanted)
        assert torch.equal(twin.kept_counts(), alone.kept_counts()) and twin.fed == alone.fed
        twin.detach()
    assert all(torch.equal(now, then) for now, then in zip(held(cache), before, strict=True)) and cache.seen == 75


@pytest.mark.parametrize("way", COPIES)
def test_copies_share_model_and_policy(read, way):
    model, cache = read
    with COPIES[way](cache) as twin:
        assert twin._model is model and twin.policy is cache.policy
        assert all(layer.policy is cache.policy for layer in twin.layers)
        places = {tensor.data_ptr() for tensor in held(cache) if tensor.numel()}
        shared = [tensor.data_ptr() in places for tensor in held(twin) if tensor.numel() and tensor.is_floating_point()]
        assert not any(shared) if way == "deepcopy" else all(shared)


@pytest.mark.parametrize("way", COPIES)
def test_copies_keep_their_guards_and_the_model_its_attention(way):
    model = tiny_llama()
    before = model.config._attn_implementation
    cache = MemoryCache(model, Streaming(16, 16))
    with torch.no_grad():
        model(text(70), **{CACHE: cache})
    twin = COPIES[way](cache)
    cache.detach()
    with pytest.raises(ValueError, match="output_attentions"):
        model(text(5), output_attentions=True, **{CACHE: twin})
    with pytest.raises(ValueError, match="reset"):
        model.generate(text(90, 5), max_new_tokens=2, **{CACHE: twin})
    go_on(model, twin, 3)
    twin.detach()
    assert model.config._attn_implementation == before


def test_pickling_is_refused_in_one_line(read):
    _, cache = read
    for write in (pickle.dumps, lambda cache: torch.save(cache, io.BytesIO())):
        with pytest.raises(TypeError, match=r"^a memory refers to its model.*cache\.save.*$"):
            write(cache)


def test_saved_and_read_again(read, tmp_path):
    """It goes on to the same bits, in another model of the same weights too; nothing is left beside the file."""
    model, cache = read
    cache.save(tmp_path / "memory.safetensors")
    assert [file.name for file in tmp_path.iterdir()] == ["memory.safetensors"]
    wanted = go_on(model, cache, 3)
    with MemoryCache.load(tmp_path / "memory.safetensors", other := tiny_llama(), cache.policy) as again:
        assert again.seen == 75 and torch.equal(go_on(other, again, 3), wanted)
        assert again.fed == cache.fed and torch.equal(again.kept_counts(), cache.kept_counts())


def test_files_that_do_not_fit_are_refused(tmp_path):
    model = tiny_llama()
    before = model.config._attn_implementation
    file = tmp_path / "memory.safetensors"
    with MemoryCache(model, Streaming(16, 16)) as cache, torch.no_grad():
        cache.save(file)
        with MemoryCache.load(file, model, Streaming(16, 16)) as fresh:
            assert fresh.seen == 0
        model(text(70), **{CACHE: cache})
    cache.save(file)
    for other, policy, message in (
        (model, Streaming(16, 32), "holds 2 layers of Streaming"),
        (model, H2O(16, 16), "holds 2 layers of Streaming"),
        (tiny_llama(num_hidden_layers=3), Streaming(16, 16), "wanted are 3"),
    ):
        with pytest.raises(ValueError, match=message):
            MemoryCache.load(file, other, policy)
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(ValueError, match="no saved memory"):
        MemoryCache.load(file, model, Streaming(16, 16))
    with pytest.raises(ValueError, match="no such file"):
        MemoryCache.load(tmp_path / "none", model, Streaming(16, 16))
    assert model.config._attn_implementation == before
