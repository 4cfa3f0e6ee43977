"""GGUF files with damage in what stands before the weights: one line, or a model with the file's own numbers."""

from __future__ import annotations

import logging
import os
import random
import shutil
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

from tests.fuzz import mutation
from tests.fuzz.running import refused
from tests.workers import gguf_files
from workers import gguf_models


class Inputs:
    """A tiny model's file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "model"
        self._folder.mkdir()
        self._cache = folder / "cache"
        self._file = self._folder / "tiny.gguf"
        gguf_files.write(self._file, gguf_files.model())
        self._whole = self._file.read_bytes()
        self._start = gguf.GGUFReader(self._file).data_offset
        logging.getLogger("transformers").setLevel(logging.CRITICAL)

    def one(self, rng: random.Random) -> bool:
        """See `running.Kind`."""
        head, rest = self._whole[: self._start], self._whole[self._start :]
        near = rng.choice([64, 400, len(head)])
        changed = head if rng.random() < 0.02 else mutation.bytes_of(rng, head[:near]) + head[near:]
        if len(changed) < len(head) and rng.random() < 0.5:
            changed += bytes(len(head) - len(changed))
        self._file.write_bytes((changed + rest)[: rng.choice([None, None, None, rng.randrange(len(self._whole))])])
        before = os.environ.get("NAMM_CACHE")
        os.environ["NAMM_CACHE"] = str(self._cache)
        try:
            made = gguf_models.folder(self._file, "float32")
            self._compare(load_file(made / "model.safetensors"))
        except ValueError as error:
            left = [path for path in self._cache.rglob("*") if path.is_file() and path.suffix != ".lock"]
            assert not left, f"half-written: {left}"
            return refused(error)
        finally:
            shutil.rmtree(self._cache, ignore_errors=True)
            os.environ.pop("NAMM_CACHE")
            if before is not None:
                os.environ["NAMM_CACHE"] = before
        return True

    def _compare(self, found: dict[str, np.ndarray]) -> None:
        """What a second reader finds in the file."""
        for tensor in gguf.GGUFReader(self._file).tensors:
            if tensor.name == "token_embd.weight":
                numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
                rows = min(len(numbers), len(found["model.embed_tokens.weight"]))
                right = np.array_equal(found["model.embed_tokens.weight"][:rows], numbers[:rows], equal_nan=True)
                assert right, "other weights than the file's"
