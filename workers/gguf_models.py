"""A language model in a GGUF file, as a folder of safetensors that every process of a node can map.

The file is read by transformers with the package `gguf`, dequantised once, and kept in the node's cache. Nothing in it
is run. Knows nothing of where the file comes from.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from workers import node_cache

PACKAGES = ("gguf", "accelerate")
"""What transformers reads GGUF files with."""
LARGEST = 1.5
"""Parameters of a model for each number in its file's tensors, at most; it is 1 but for what is tied or left out."""
FORMAT = 1
"""Raised when this file comes to write other folders from the same GGUF."""


def digest(file: Path) -> str:
    """SHA-256 of a file, as its publisher gives it."""
    status = file.stat()
    return _digest(str(file), status.st_size, status.st_mtime_ns)


def folder(file: Path, dtype: str) -> Path:
    """Folder of the model and tokenizer in a GGUF file, with weights of type `dtype`; made where it is not there.

    Making it takes some ten seconds for 135 million parameters, and memory for all of them. Its name holds the file's
    digest, and the versions of the libraries that dequantise. Raises ValueError, one line, for a file that is damaged
    or of a kind that transformers does not know, and where a package is missing.
    """
    place = _place(file, dtype)
    if not place.is_dir():
        _check_packages(file)
        node_cache.make_once(place, lambda part: _dequantise(file, dtype, part))
    return place


def tokenizer_folder(file: Path) -> Path:
    """Folder of the tokenizer in a GGUF file alone; made where it is not there. Raises ValueError as `folder` does."""
    place = _place(file, "tokenizer")
    if not place.is_dir():
        _check_packages(file)
        node_cache.make_once(place, lambda part: _tokenizer(file).save_pretrained(part))
    return place


def made(file: Path, dtype: str) -> Path | None:
    """The same folder where it is there already; makes nothing."""
    place = _place(file, dtype)
    return place if place.is_dir() else None


def _check_packages(file: Path) -> None:
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        wanted = " and ".join(missing)
        raise ValueError(f"{file.name} needs the package {wanted} on every node: pip install 'namm[gguf]'")


def _place(file: Path, dtype: str) -> Path:
    try:
        version = importlib.metadata.version("gguf")
    except importlib.metadata.PackageNotFoundError:
        version = "none"
    key = f"{FORMAT}/{digest(file)}/{dtype}/{transformers.__version__}/{version}"
    return node_cache.root() / "gguf" / f"{file.stem}-{dtype}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


@lru_cache(maxsize=8)
def _digest(name: str, size: int, changed: int) -> str:
    with open(name, "rb") as f:
        found = hashlib.sha256()
        while chunk := f.read(1 << 20):
            found.update(chunk)
    return found.hexdigest()


def _tokenizer(file: Path) -> PreTrainedTokenizerBase:
    with _one_line(file):
        return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)


def _check_sizes(file: Path) -> None:
    """Raises ValueError, one line, where the file's head describes a larger model than its tensors are of.

    transformers would build that model before it looks for the tensors, which takes any time and any memory.
    """
    import gguf

    with _one_line(file):
        reader = gguf.GGUFReader(file)
        names = [tensor.name for tensor in reader.tensors]
        numbers = sum(int(tensor.n_elements) for tensor in reader.tensors)
        blocks = len({match[1] for name in names if (match := re.match(r"blk\.(\d+)\.", name))})
        said = [int(field.contents()) for name, field in reader.fields.items() if name.endswith(".block_count")]
    if said != [blocks]:
        raise ValueError(
            f"{file} is no GGUF model that can be read: its head says that it has {', '.join(map(str, said)) or 'no'} "
            f"blocks, and there are tensors of {blocks}"
        )
    with _one_line(file), torch.device("meta"):
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
        parameters = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if parameters > LARGEST * numbers:
        raise ValueError(
            f"{file} is no GGUF model that can be read: its head describes {parameters:,} parameters, and its tensors "
            f"hold {numbers:,} numbers"
        )


def _dequantise(file: Path, dtype: str, out: Path) -> None:
    logging.disable_progress_bar()
    _check_sizes(file)
    whole = {}
    if hasattr(transformers, "GgufConfig"):  # it would leave weights packed where it finds a kernel for them
        whole["quantization_config"] = transformers.GgufConfig(dequantize=True)
    tokenizer = _tokenizer(file)
    with _one_line(file):
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=getattr(torch, dtype), local_files_only=True, **whole
        )
    _plain(model)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    for written in out.iterdir():
        written.chmod(0o644)  # safetensors writes files that only their owner can read


@contextmanager
def _one_line(file: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # parsers of a damaged file raise whatever its bytes happen to lead them to
        raise ValueError(f"{file} is no GGUF model that can be read: {_reason(error)}") from None


def _plain(model: PreTrainedModel) -> None:
    """Takes off what says that the model came from a GGUF file; with it, transformers refuses to save the model."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None  # type: ignore[assignment]  # torch takes any attribute of a module for a tensor
    model.is_quantized = False  # type: ignore[assignment]


def _reason(error: Exception) -> str:
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
