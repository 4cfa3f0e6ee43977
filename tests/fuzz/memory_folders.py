"""Folders of saved memories: config.json and the head in safetensors. What is accepted has the numbers of the file."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
from safetensors.numpy import load, save

from namm_core import Namm
from tests.fuzz import mutation
from tests.fuzz.running import refused

SHIPPED = Path(__file__).resolve().parents[2] / "models" / "recall-namm"


class Inputs:
    """The shipped memory, with damage."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._config = json.loads((SHIPPED / "config.json").read_text("utf-8"))
        self._weights = (SHIPPED / "model.safetensors").read_bytes()

    def one(self, rng: random.Random) -> bool:
        """See `running.Kind`."""
        config = json.dumps(self._config).encode()
        weights = self._weights
        what = rng.randrange(5)
        if what == 0:
            config = json.dumps(mutation.tree_of(rng, self._config), default=str).encode()
        elif what == 1:
            config = mutation.bytes_of(rng, config)
        elif what == 2:
            weights = mutation.bytes_of(rng, weights)
        elif what == 3:
            weights = save(_changed(rng, load(weights)))
        (self._folder / "config.json").write_bytes(config)
        (self._folder / "model.safetensors").write_bytes(weights)
        try:
            namm = Namm.from_pretrained(self._folder)
        except ValueError as error:
            assert what != 4, error
            return refused(error)
        theta = load(weights)["theta"]
        assert np.array_equal(np.asarray(namm.theta, np.float32).ravel(), theta.astype(np.float32).ravel())
        assert np.isfinite(theta).all(), "a head that is no number"
        return True


def _changed(rng: random.Random, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    name = rng.choice(list(tensors))
    tensor = tensors[name]
    what = rng.randrange(6)
    if what == 0:
        del tensors[name]
    elif what == 1:
        tensors[name] = tensor.astype(rng.choice(["<f2", "<f8", "<i4", "?"]))
    elif what == 2:
        tensors[name] = np.repeat(tensor.ravel(), 2)
    elif what == 3:
        tensors[name] = tensor.ravel()[: tensor.size // 2].copy()
    elif what == 4:
        tensors[name] = np.full_like(tensor, rng.choice([np.nan, np.inf, -1.0, 0.0]))
    else:
        tensors[name] = tensor.reshape(1, *tensor.shape).copy()
    return tensors
