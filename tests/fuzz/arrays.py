"""Values of the prompts' Redis: the array that was stored, or damaged; never another array, never code."""

from __future__ import annotations

import random
import struct

import numpy as np

from tests.fuzz import mutation
from tests.fuzz.running import refused
from workers import array_cache

KEY = array_cache.content_key("prompt", text="a")


class Inputs:
    """Stored arrays with damage; some whose checksum is right, as somebody with the server's password could write."""

    def one(self, rng: random.Random) -> bool:
        """See `running.Kind`."""
        numbers = np.random.default_rng(rng.getrandbits(32))
        shape = tuple(rng.choices([0, 1, 2, 5], k=rng.randint(0, 3)))
        array = numbers.integers(-9, 9, shape).astype(rng.choice(["<i4", "<i8", "<f4", "<f8", "u1", "?"]))
        whole = array_cache.pack(KEY, array)
        how = rng.randrange(4)
        if how == 0:
            value = whole
        elif how == 1:
            value = mutation.bytes_of(rng, whole)
        else:
            body = mutation.bytes_of(rng, whole[:-16]) if how == 2 else _head(rng) + rng.randbytes(rng.randint(0, 40))
            value = body + array_cache._digest(KEY, body)
        try:
            found = array_cache.unpack(KEY, value)
        except ValueError as error:
            assert value != whole
            return refused(error)
        assert found.nbytes <= len(value) and found.flags.writeable and not found.dtype.hasobject
        if how < 2:
            assert value == whole and found.dtype == array.dtype and found.tobytes() == array.tobytes()
        return True


def _head(rng: random.Random) -> bytes:
    dimensions = rng.randint(0, 255) if rng.random() < 0.3 else rng.randint(0, 4)
    sizes = [rng.choice([0, 1, 3, 2**32, 2**63, 2**64 - 1]) for _ in range(rng.choice([dimensions, dimensions, 1]))]
    return array_cache._MAGIC + struct.pack(f"<BB{len(sizes)}Q", rng.randint(0, 8), dimensions, *sizes)
