"""Keeps secrets out of what is recorded. Knows nothing of where records go."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workers.masking import masked_text, masked_url

_SECRET_WORDS = re.compile(
    r"(^|_)(password|passwd|passphrase|pwd|secrets?|credentials?|(api|access|private)_?key)(_|$)"
    r"|(^|_)(?<!bos_)(?<!eos_)(?<!pad_)(?<!unk_)token$"
)


_ADDRESSES = re.compile(r"(^|_)(ur[il]|address|storage|endpoint|dsn)s?$")


def without_secrets(value: Any, name: str = "") -> Any:
    """`value` (nested mappings, sequences and dataclasses, which become mappings) with its secrets replaced by ***.

    Secret are values under a name like password, token or api_key, and the credentials in addresses. name: under which
    the value itself stands.
    """
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[^A-Za-z0-9]+", "_", name).lower()
    if value not in (None, "") and not isinstance(value, bool) and _SECRET_WORDS.search(snake):
        return "***"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {key: without_secrets(item, str(key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_secrets(item, name) for item in value]
    if not isinstance(value, str | Path):
        return value
    return (masked_url if _ADDRESSES.search(snake) else masked_text)(str(value))
