"""What only its owner should know, kept out of records and messages. Knows nothing of where they go."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

from workers.masking import masked_url

_SECRET_WORDS = re.compile(
    r"(^|_)(password|passwd|passphrase|pwd|secrets?|credentials?|(api|access|private)_?key)(_|$)"
    r"|(^|_)(?<!bos_)(?<!eos_)(?<!pad_)(?<!unk_)token$"
)


def without_secrets(value, name: str = ""):
    """`value` (nested mappings and sequences) with what only its owner should know replaced by ***.

    Secret is what stands under a name like password, token or api_key, and the credentials in a URL.
    """
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[^A-Za-z0-9]+", "_", name).lower()
    if value not in (None, "") and not isinstance(value, bool) and _SECRET_WORDS.search(snake):
        return "***"
    if dataclasses.is_dataclass(value):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {key: without_secrets(item, str(key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_secrets(item, name) for item in value]
    return masked_url(str(value)) if isinstance(value, (str, Path)) else value
