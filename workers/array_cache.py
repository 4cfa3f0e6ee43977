"""Keeps arrays that are costly to make again (token ids, base scores) in Redis, keyed by their content.

Values are typed bytes, never pickles. A lost Redis costs time, not the run: a bounded local store stands in front of
it and goes on alone. Knows nothing of tokenizers, models or tasks: callers say what a key is made of.
"""

from __future__ import annotations

import hashlib
import json
import logging
import struct
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import redis

from workers.masking import masked_text, masked_url

logger = logging.getLogger(__name__)

_MAGIC = b"NMA1"
_DTYPES = {1: "<i4", 2: "<i8", 3: "<f4", 4: "<f8", 5: "|u1", 6: "|b1"}
_CODES = {np.dtype(name): code for code, name in _DTYPES.items()}
_DIGEST = 16  # bytes


def content_key(kind: str, **parts: Any) -> str:
    """Redis key of whatever is determined by `parts` (JSON values: model, tokenizer, task, template, sample, ...).

    The same parts in any order give the same key in every process; 1, 1.0, True and "1" are different parts.
    Raises ValueError for a part that JSON cannot hold exactly (an array, an object, NaN).
    """
    try:
        text = json.dumps([kind, parts], sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"a content key is made of JSON values only: {error}") from None
    return f"namm:{kind}:{hashlib.sha256(text.encode()).hexdigest()}"


def pack(key: str, array: np.ndarray) -> bytes:
    """Bytes of `array`, little-endian: magic, dtype code, number of dimensions, shape, payload, checksum.

    The checksum covers `key` too, so that a value found under another key counts as damaged.
    Raises ValueError for a dtype other than int32, int64, float32, float64, uint8 and bool.
    """
    array = np.asarray(array)
    code = _CODES.get(array.dtype.newbyteorder("<"))
    if code is None:
        known = ", ".join(str(np.dtype(name)) for name in _DTYPES.values())
        raise ValueError(f"arrays of dtype {array.dtype} cannot be stored: convert to one of {known}")
    head = _MAGIC + struct.pack(f"<BB{array.ndim}Q", code, array.ndim, *array.shape)
    body = head + array.astype(_DTYPES[code], copy=False).tobytes()
    return body + _digest(key, body)


def unpack(key: str, value: bytes) -> np.ndarray:
    """The array that `pack` made `value` of; writable, with memory of its own. Raises ValueError if damaged."""
    body, digest = value[:-_DIGEST], value[-_DIGEST:]
    if not body.startswith(_MAGIC) or digest != _digest(key, body):
        raise ValueError(f"{len(value)} bytes are not an intact array of this key")
    try:
        code, ndim = struct.unpack_from("<BB", body, len(_MAGIC))
        shape = struct.unpack_from(f"<{ndim}Q", body, len(_MAGIC) + 2)
        payload = np.frombuffer(body, dtype=_DTYPES[code], offset=len(_MAGIC) + 2 + 8 * ndim)
        return payload.reshape(shape).astype(payload.dtype.newbyteorder("="))
    except (struct.error, KeyError, TypeError, OverflowError, ValueError):  # whoever may write there can sign it
        raise ValueError(f"{len(value)} bytes say that they are an array, and are none") from None


def _digest(key: str, body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_DIGEST, key=hashlib.sha256(key.encode()).digest()).digest()


class ArrayCache:
    """Arrays by content key, in Redis at `url` (redis://, rediss://, unix://) and in this process.

    `url=None` keeps them in this process only. One object serves one thread; pickling carries the address,
    not the contents.

    Args:
        url: address of a Redis server, or None.
        password: used if the url holds none.
        local_bytes: bound of the local store; the least recently used arrays leave first.
        retry_every: seconds for which a Redis that failed is left alone.
        expire: seconds after which Redis may forget a value, so that a shared server does not fill up.

    Attributes:
        hits, misses: how often `get` found an array, wherever it was, and how often it did not.
        failures: calls to Redis that failed.
        lost: whether the last call to Redis failed.
    """

    def __init__(
        self,
        url: str | None,
        password: str | None = None,
        *,
        local_bytes: int = 64 * 2**20,
        retry_every: float = 5.0,
        expire: int = 30 * 24 * 3600,
    ) -> None:
        self._local_limit, self._retry_every, self._expire = local_bytes, retry_every, expire
        self._url, self._password = url, password
        self._label = "" if url is None else masked_url(url)
        self._local: OrderedDict[str, np.ndarray] = OrderedDict()
        self._local_bytes = 0
        self.lost = False
        self._retry_at = 0.0
        self.hits = self.misses = self.failures = 0
        # The client's own defaults block a call for 4.4 s when the server is down.
        limits: dict[str, Any] = {"retry": None, "socket_timeout": 0.5, "socket_connect_timeout": 0.5}
        self._client = None if url is None else redis.Redis.from_url(url, password=password, **limits)

    def __reduce__(self) -> tuple[Any, ...]:
        limits = {"local_bytes": self._local_limit, "retry_every": self._retry_every, "expire": self._expire}
        return _open, (self._url, self._password, limits)

    def __repr__(self) -> str:
        return f"ArrayCache({self._label or None!r})"

    def get(self, key: str) -> np.ndarray | None:
        """A copy of the array stored under `key`, or None."""
        array = self._local.get(key)
        if array is not None:
            self._local.move_to_end(key)
        else:
            array = self._from_redis(key)
        if array is None:
            self.misses += 1
            return None
        self.hits += 1
        return array.copy()

    def put(self, key: str, array: np.ndarray) -> None:
        """Stores `array` under `key`; never raises because of Redis, but ValueError for a dtype that `pack` refuses."""
        array = np.array(array)
        value = pack(key, array)
        self._keep(key, array)
        self._ask(lambda client: client.set(key, value, ex=self._expire))

    def get_or_make(self, key: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The array of `key`; if there is none, `make()` is called and its result stored."""
        array = self.get(key)
        if array is None:
            array = np.asarray(make())
            self.put(key, array)
        return array

    def _from_redis(self, key: str) -> np.ndarray | None:
        value = self._ask(lambda client: client.get(key))
        if value is None:
            return None
        try:
            array = unpack(key, value)
        except ValueError as error:
            logger.warning("Redis: the value of %s is damaged (%s); it is made again", key, error)
            return None
        self._keep(key, array)
        return array

    def _keep(self, key: str, array: np.ndarray) -> None:
        if key in self._local:
            self._local_bytes -= self._local.pop(key).nbytes
        self._local[key] = array
        self._local_bytes += array.nbytes
        while self._local_bytes > self._local_limit:
            self._local_bytes -= self._local.popitem(last=False)[1].nbytes

    def _ask(self, call: Callable[[redis.Redis], Any]) -> Any:
        """What Redis answers; None while it is lost."""
        if self._client is None or time.monotonic() < self._retry_at:
            return None
        try:
            answer = call(self._client)
        except (redis.RedisError, OSError) as error:
            self.failures += 1
            self._retry_at = time.monotonic() + self._retry_every
            if not self.lost:
                reason = masked_text(f"{type(error).__name__}: {error}")
                logger.warning("Redis at %s is lost (%s); going on without it", self._label, reason)
            self.lost = True
            return None
        if self.lost:
            logger.warning("Redis at %s is back", self._label)
        self.lost = False
        return answer


def _open(url: str | None, password: str | None, limits: dict[str, Any]) -> ArrayCache:
    return ArrayCache(url, password, **limits)
