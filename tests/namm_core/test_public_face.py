"""What a user may import, and the two names of the cache's argument."""

from __future__ import annotations

import importlib
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import namm_core
from namm_core import MemoryCache, Namm, NammConfig, answer
from namm_core.support import cache_argument
from namm_core.with_memory import generate_with
from tests.namm_core.architectures import small_model, text

NEW = {"max_new_tokens": 6, "do_sample": False}


@pytest.fixture(scope="module")
def model():
    return small_model("llama")


def namm() -> Namm:
    return Namm(NammConfig(update_interval=16), 0.1 * torch.randn(4172, generator=torch.Generator().manual_seed(3)))


def test_every_name_that_is_listed_is_there():
    for name in namm_core.__all__:
        assert getattr(namm_core, name) is not None
    assert {"Namm", "NammConfig", "FeatureStatistics", "MemoryCache", "policies"} <= set(namm_core.__all__)
    assert dir(namm_core) == namm_core.__all__
    with pytest.raises(AttributeError, match="no attribute 'Nam'"):
        namm_core.Nam  # noqa: B018


def test_every_module_can_be_imported_first():
    """A circle of imports shows only in whoever comes first; kernels are imported where Triton is."""
    root = Path(namm_core.__file__).parent
    names = [".".join(f.relative_to(root.parent).with_suffix("").parts) for f in sorted(root.rglob("*.py"))]
    names = [name.removesuffix(".__init__") for name in names if "triton_kernels" not in name]
    code = (
        "import importlib, sys\n"
        "import torch, transformers\n"
        "for name in sys.argv[1:]:\n"
        "    for loaded in [m for m in sys.modules if m.split('.')[0] == 'namm_core']:\n"
        "        del sys.modules[loaded]\n"
        "    importlib.import_module(name)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(root.parent)}
    done = subprocess.run([sys.executable, "-c", code, *names], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_a_call_takes_both_names_of_the_argument(model, name):
    """Forward calls and `generate`; the checks of a call see the cache under either name."""
    if name == "cache" and cache_argument(model) != "cache":
        pytest.skip("this transformers does not know `cache` yet")
    ids = text(40, 1)[None]
    with MemoryCache(model, namm()) as cache, torch.no_grad():
        model(ids, **{name: cache})
        assert cache.fed == [40]
        with pytest.raises(ValueError, match="output_attentions"):
            model(ids, output_attentions=True, **{name: cache})
    tokens = []
    for again in (name, cache_argument(model)):
        with MemoryCache(model, namm()) as cache:
            tokens.append(model.generate(ids, **{again: cache}, **NEW))
    assert torch.equal(*tokens)


def test_nothing_of_ours_uses_a_name_that_transformers_warns_of(model, caplog):
    """transformers warns of some names by the log, of others by a warning, and of each but once in a process."""
    generic = importlib.import_module("transformers.utils.generic")
    cleared = getattr(type(generic.logger).warning_once, "cache_clear", None)
    if cleared is not None:
        cleared()
    logger = logging.getLogger("transformers")
    logger.propagate, before = True, logger.propagate
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            prompts = [text(40, 1), text(50, 2)]
            with MemoryCache(model, namm()) as cache:
                answer(model, prompts * 2, [torch.tensor([5, 6])] * 4, cache, 6)
            answer(model, prompts, [torch.tensor([5, 6])] * 2, None, 6)
            generate_with(namm(), model, text(40, 1)[None], **NEW)
        said = [str(w.message) for w in seen] + [record.getMessage() for record in caplog.records]
        assert not [line for line in said if "past_key_values" in line]
        with MemoryCache(model, namm()) as cache, torch.no_grad(), warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            model(text(40, 1)[None], past_key_values=cache)
        heard = [str(w.message) for w in seen] + [record.getMessage() for record in caplog.records]
        assert cache_argument(model) != "cache" or [line for line in heard if "past_key_values" in line], "deaf test"
    finally:
        logger.propagate = before
