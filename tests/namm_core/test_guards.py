"""Wrong input is refused where attention runs, whoever calls; settings from files do not change what is fed."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig

from namm_core import MemoryCache, Namm, NammConfig, prefill
from namm_core.policies import Full, Streaming
from tests.namm_core.matrix import CACHE
from tests.tiny_models import tiny_llama

IDS = torch.randint(1, 97, (2, 20), generator=torch.Generator().manual_seed(1))
RIGHT_PADDED = torch.ones_like(IDS)
RIGHT_PADDED[1, 12:] = 0


class Wrapper(nn.Module):
    """Holds a model and hands everything on, as LoRA's and other libraries' wrappers do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.base_model = inner

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.base_model, name)

    def forward(self, *arguments, **settings):
        return self.base_model(*arguments, **settings)

    def generate(self, *arguments, **settings):
        return self.base_model.generate(*arguments, **settings)


WRAPPERS = {
    "plain": lambda model: model,
    "wrapped": Wrapper,
    "wrapped twice": lambda model: Wrapper(Wrapper(model)),
    "compiled": lambda model: torch.compile(model, backend="eager"),
}


@pytest.fixture(params=WRAPPERS)
def wrapped(request):
    return WRAPPERS[request.param](tiny_llama())


def test_right_padded_prompts_are_refused_through_wrappers(wrapped):
    with MemoryCache(wrapped, Full(16)) as cache, pytest.raises(ValueError, match="padded on the right"):
        wrapped.generate(input_ids=IDS, attention_mask=RIGHT_PADDED, max_new_tokens=2, **{CACHE: cache})
    assert cache.seen == 0


def test_attention_weights_are_refused_through_wrappers(wrapped):
    with MemoryCache(wrapped, Full(16)) as cache, pytest.raises(ValueError, match="output_attentions"):
        wrapped.generate(
            input_ids=IDS, output_attentions=True, return_dict_in_generate=True, max_new_tokens=2, **{CACHE: cache}
        )
    assert cache.seen == 0


def test_a_memory_of_the_wrapper_is_guarded_in_the_model_inside():
    """The memory was made for one object, another one's forward runs."""
    model = tiny_llama()
    for outer, caller in ((Wrapper(model), model), (model, Wrapper(model)), (model, model.model)):
        with MemoryCache(outer, Full(16)) as cache, torch.no_grad():
            with pytest.raises(ValueError, match="output_attentions"):
                caller(IDS, output_attentions=True, **{CACHE: cache})
            with pytest.raises(ValueError, match="2D padding mask"):
                caller(IDS, attention_mask=torch.zeros(2, 1, 20, 20), **{CACHE: cache})
            caller(IDS, **{CACHE: cache})
            mask = torch.ones(2, 21)
            mask[0, 3] = 0
            with pytest.raises(ValueError, match="cannot become padding"):
                caller(IDS[:, :1], attention_mask=mask, **{CACHE: cache})


def test_attention_weights_asked_for_past_all_hooks_are_refused():
    """A caller of `forward` itself: the layers ask for what no memory can give."""
    model = tiny_llama()
    with MemoryCache(model, Full(16)) as cache, torch.no_grad(), pytest.raises(ValueError, match="output_attentions"):
        model.model.forward(IDS, output_attentions=True, **{CACHE: cache})


def test_a_model_of_something_else_is_refused():
    with pytest.raises(ValueError, match="models of transformers, not Linear"):
        MemoryCache(nn.Linear(2, 2), Full(16))


def test_long_rows_of_unequal_length_are_read_in_pieces():
    """A piece in which no row ends, after a row that has ended, is no prompt that is padded on the right."""
    prompts = [torch.randint(1, 97, (n,), generator=torch.Generator().manual_seed(n)) for n in (40, 300)]
    model = tiny_llama()
    with torch.no_grad():
        with MemoryCache(model, Streaming(16, 32)) as cache:
            pieces, _ = prefill(model, prompts, cache, at_once=128)
        with MemoryCache(model, Streaming(16, 32)) as cache:
            whole, _ = prefill(model, prompts, cache)
    torch.testing.assert_close(pieces, whole, atol=1e-5, rtol=0)


# --- settings that arrive by file


def namm() -> Namm:
    config = NammConfig(update_interval=16)
    theta = torch.randn(Namm(config).num_parameters, generator=torch.Generator().manual_seed(0)) * 0.3
    return Namm(config, theta)


def with_settings(folder, **settings):
    """A saved model whose generation_config.json says these."""
    tiny_llama().save_pretrained(folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.mark.parametrize(
    "settings",
    [
        {"use_cache": False},
        {"cache_implementation": "hybrid"},
        {"cache_implementation": "static"},
        {"cache_implementation": "offloaded"},
        {"prefill_chunk_size": 7},
        {"return_dict_in_generate": True},
        {"use_cache": False, "num_beams": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("way", ["cache", "custom_generate"])
def test_files_do_not_change_what_a_memory_is_fed(tmp_path, settings, way):
    model, plain = with_settings(tmp_path / "model", **settings), tiny_llama()
    before = model.generation_config.to_dict()
    options = {"max_new_tokens": 8, "do_sample": False} | ({"num_beams": 2} if "num_beams" in settings else {})
    with MemoryCache(plain, namm()) as cache:
        wanted = plain.generate(IDS, **options, **{CACHE: cache})
    if way == "cache":
        with MemoryCache(model, namm()) as cache:
            got = model.generate(IDS, **options, **{CACHE: cache})
        assert cache.seen == 27
    else:
        namm().save_pretrained(tmp_path / "memory")
        got = model.generate(IDS, custom_generate=str(tmp_path / "memory"), trust_remote_code=True, **options)
    assert torch.equal(got if isinstance(got, torch.Tensor) else got.sequences, wanted)
    assert model.generation_config.to_dict() == before


def test_a_configuration_without_a_cache_does_not_change_what_a_memory_is_fed():
    model = tiny_llama(use_cache=False)
    with MemoryCache(model, namm()) as cache:
        model.generate(IDS, max_new_tokens=8, do_sample=False, **{CACHE: cache})
    assert cache.seen == 27


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"use_cache": False}, "use_cache=False with a memory"),
        ({"prompt_lookup_num_tokens": 3}, "cannot be taken back"),
        ({"output_attentions": True, "return_dict_in_generate": True}, "output_attentions"),
    ],
    ids=["no-cache", "prompt-lookup", "attentions"],
)
def test_settings_that_no_memory_can_serve_are_refused(settings, message):
    """In an object that is passed, where somebody means it; nothing is fed, or no more than the prompt."""
    model = tiny_llama()
    with MemoryCache(model, Full(16)) as cache, pytest.raises(ValueError, match=message):
        model.generate(IDS[:1], generation_config=GenerationConfig(max_new_tokens=3, **settings), **{CACHE: cache})
    assert cache.seen in (0, 20)
