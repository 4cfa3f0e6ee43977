"""Fixtures of more than one floor's tests; knows where the golden data stand, not what they hold."""

import os
import tempfile
from pathlib import Path

import pytest
import torch

# Without a GPU, Triton's kernels run in its interpreter; read when Triton is first imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# Where transformers copies code that comes with weights; read when it is first imported.
_modules = tempfile.TemporaryDirectory(prefix="namm-modules-")
os.environ["HF_MODULES_CACHE"] = _modules.name


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the recorded runs of the public implementation; skips where NAMM_GOLDEN does not name one."""
    folder = os.environ.get("NAMM_GOLDEN")
    if not folder:
        pytest.skip("NAMM_GOLDEN is not set: it names the folder of recorded runs to compare with")
    return Path(folder).resolve(strict=True)


@pytest.fixture(scope="session")
def small_model() -> Path:
    """Folder of the trained model that this repository ships."""
    return Path(__file__).parent.parent / "models" / "recall-small"


@pytest.fixture(scope="session")
def control_model() -> Path:
    """Folder of the Decision Transformer that this repository ships."""
    return Path(__file__).parent.parent / "models" / "control-small"
