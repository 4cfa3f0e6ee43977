"""Job files and overrides: what is accepted is written and read back as it was, without a password."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import yaml

from orchestrator import addresses, spec
from tests.fuzz import mutation
from tests.fuzz.addresses import Secret, draw
from tests.fuzz.running import refused
from workers.masking import masked_text

ROOT = Path(__file__).resolve().parents[2]
JOBS = ("smoke", "stages-smoke", "recall", "llama3-8b-longbench")


class Inputs:
    """Job files of this repository, with damage."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._plain = [yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text("utf-8")) for name in JOBS]
        full = spec.plain(spec.read(ROOT / "configs" / "smoke.yaml"))
        self._plain.append(full)
        self._keys = [key for key in _dotted(full, "") if key]

    def one(self, rng: random.Random) -> bool:
        """See `running.Kind`."""
        secret = draw(rng)

        def value() -> Any:
            return secret.address if rng.random() < 0.1 else rng.choice(mutation.NASTY)

        plain = rng.choice(self._plain)
        for _ in range(rng.choice([0, 1, 1, 2])):
            plain = mutation.tree_of(rng, plain, value)
        if isinstance(plain, dict) and rng.random() < 0.2:
            plain = {**plain, rng.choice(addresses.ADDRESSES[:3]): secret.address}
        text = yaml.safe_dump(plain, allow_unicode=True)
        if rng.random() < 0.2:
            text = mutation.bytes_of(rng, text.encode("utf-8", "replace")).decode("utf-8", "replace")
        return self._read(text, [self._override(rng, value) for _ in range(rng.choice([0, 0, 1, 3]))], secret)

    def _override(self, rng: random.Random, value: Any) -> str:
        key = rng.choice(self._keys)
        text = yaml.safe_dump(value(), default_flow_style=True, allow_unicode=True).removesuffix("\n...\n").strip()
        text = rng.choice([text, text, str(value()), mutation.word(rng, text)])
        return rng.choice([f"{key}={text}"] * 4 + [f"{mutation.word(rng, key)}={text}", key, text, f"{key}.x={text}"])

    def _read(self, text: str, overrides: list[str], secret: Secret) -> bool:
        try:
            job = spec.parse(text, "job.yaml", overrides)
        except ValueError as error:
            shown = masked_text(str(error))
            assert not secret.shown_in(shown), f"{secret.address!r} is shown as {shown!r}"
            return refused(error)
        file = self._folder / "job.yaml"
        spec.write(job, file)
        stored = file.read_text("utf-8")
        if any(secret.address in str(getattr(job, name, None)) for name in addresses.ADDRESSES):
            # The same text as a task's name, say, is no address, and is stored as the name that it is.
            names = str(_without_addresses(spec.plain(job)))
            assert secret.address in names or not secret.shown_in(stored), "the password is stored"
        again = spec.read(file)
        assert again.digest() == job.digest() and spec.plain(again) == addresses.kept(spec.plain(job))
        assert sorted(path.name for path in self._folder.iterdir()) == ["job.yaml"], "something half-written is left"
        return True


def _without_addresses(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_addresses(v) for key, v in value.items() if key not in addresses.ADDRESSES}
    return [_without_addresses(v) for v in value] if isinstance(value, list) else value


def _dotted(value: Any, key: str) -> list[str]:
    if isinstance(value, dict):
        return [key] + [inner for name, part in value.items() for inner in _dotted(part, f"{key}.{name}".lstrip("."))]
    return [key]
