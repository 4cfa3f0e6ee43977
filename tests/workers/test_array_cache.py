"""The prompt store against a real Redis server: what is stored, lost, damaged and found again."""

import copy
import logging
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import redis

from orchestrator.services.redis_server import private_redis, redis_program
from workers.array_cache import ArrayCache, content_key, pack, unpack

ARRAYS = [
    np.arange(7, dtype=np.int32),
    np.array([[0.25, np.nan], [-np.inf, 5e-324]]),
    np.zeros((0, 3), dtype=np.float32),
    np.int64(2**40).reshape(()),
    np.arange(24, dtype=np.uint8).reshape(2, 3, 4).transpose(2, 0, 1),
    np.array([True, False]),
    np.arange(3, dtype=">i4"),
]


class Server:
    """A Redis server over TCP that a test can stop and start again on the same port."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.port, self.process = 0, None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self, *options: str) -> None:
        if not self.port:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.port = probe.getsockname()[1]
        command = [redis_program(), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", *options]
        self.process = subprocess.Popen(command, cwd=self.folder, stdout=subprocess.DEVNULL)
        client = redis.Redis(port=self.port, retry=None)
        for _ in range(200):
            try:
                client.ping()
                return
            except redis.AuthenticationError:
                return
            except redis.ConnectionError:
                time.sleep(0.02)
        raise RuntimeError("the server did not start")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def url():
    with private_redis() as url:
        yield url


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype}{a.shape}")
def test_what_one_worker_stores_another_reads_bit_for_bit(url, array):
    key = content_key("test", array=array.tobytes().hex(), shape=array.shape)
    ArrayCache(url).put(key, array)
    found = ArrayCache(url).get(key)
    assert found.shape == array.shape and found.dtype == array.dtype.newbyteorder("=")
    assert found.tobytes() == array.astype(found.dtype).tobytes()
    found[...] = 0  # the caller's own


def test_a_caller_that_writes_to_its_array_changes_nothing_stored():
    store = ArrayCache(None)
    made = store.get_or_make("k", lambda: np.arange(4))
    made[:] = 9
    store.get("k")[:] = 8
    assert store.get("k").tolist() == [0, 1, 2, 3]


def test_make_is_called_once_for_all_workers_and_hits_are_counted(url):
    calls = []

    def make():
        calls.append(1)
        return np.array([0.5])

    first, second = ArrayCache(url), ArrayCache(url)
    key = content_key("once", sample=1)
    for store in (first, second, second):
        assert store.get_or_make(key, make).tolist() == [0.5]
    assert len(calls) == 1
    assert (first.hits, first.misses, second.hits, second.misses) == (0, 1, 2, 0)


def test_keys_depend_on_content_alone():
    key = content_key("prompt", model="m", task="t", sample=(1, 2))
    assert key == content_key("prompt", sample=[1, 2], task="t", model="m")
    others = [
        content_key("score", model="m", task="t", sample=(1, 2)),
        content_key("prompt", model="m", task="t", sample=(1, 3)),
        content_key("prompt", model="mt", task="", sample=(1, 2)),
        content_key("prompt", model="m", task="t", sample=("1", 2)),
    ]
    assert len({key, *others}) == 5
    with pytest.raises(ValueError, match="JSON"):
        content_key("prompt", tokens=np.arange(3))
    with pytest.raises(ValueError, match="JSON"):
        content_key("prompt", scale=float("nan"))


def test_every_flipped_bit_and_every_cut_is_noticed():
    value = pack("k", np.arange(5, dtype=np.int32))
    for position in range(len(value)):
        damaged = bytearray(value)
        damaged[position] ^= 4
        with pytest.raises(ValueError):
            unpack("k", bytes(damaged))
        with pytest.raises(ValueError):
            unpack("k", value[:position])
    with pytest.raises(ValueError):
        unpack("another key", value)


def test_a_damaged_value_is_a_miss_with_a_warning_and_is_made_again(url, caplog):
    key = content_key("damaged", sample=1)
    client = redis.Redis.from_url(url)
    client.set(key, b"\x80\x04K\x01.")  # a pickle, say
    store = ArrayCache(url)
    assert store.get(key) is None
    assert "damaged" in caplog.text
    assert store.get_or_make(key, lambda: np.arange(2)).tolist() == [0, 1]
    assert ArrayCache(url).get(key).tolist() == [0, 1]


def test_an_array_that_cannot_be_stored_is_refused_by_name():
    with pytest.raises(ValueError, match="complex128.*int32"):
        ArrayCache(None).put("k", np.zeros(2, dtype=complex))
    with pytest.raises(ValueError, match="object"):
        ArrayCache(None).put("k", np.array([{}]))


def test_a_killed_server_costs_one_warning_and_is_used_again_when_it_returns(server, caplog):
    caplog.set_level(logging.WARNING)
    store = ArrayCache(server.url, retry_every=0.2)
    store.put("before", np.arange(3))
    server.kill()
    start = time.monotonic()
    for number in range(50):
        assert store.get_or_make(f"during{number}", lambda: np.arange(2)).tolist() == [0, 1]
        assert store.get("before").tolist() == [0, 1, 2]
    assert time.monotonic() - start < 1.0
    assert store.failures >= 1
    assert caplog.text.count("is lost") == 1
    server.start()
    time.sleep(0.25)
    store.put("after", np.arange(4))
    assert ArrayCache(server.url).get("after").tolist() == [0, 1, 2, 3]
    assert caplog.text.count("is back") == 1


def test_a_stopped_server_blocks_for_half_a_second_not_for_ever(server):
    store = ArrayCache(server.url)
    store.put("k", np.arange(2))
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        start = time.monotonic()
        for number in range(100):
            store.get_or_make(str(number), lambda: np.arange(2))
        assert time.monotonic() - start < 1.5
    finally:
        os.kill(server.process.pid, signal.SIGCONT)


def test_a_refused_password_does_not_stop_the_run_nor_show_it(server, caplog):
    server.kill()
    server.start("--requirepass", "right-one")
    wrong = ArrayCache(f"redis://:wrong-one@127.0.0.1:{server.port}/0")
    assert wrong.get_or_make("k", lambda: np.arange(2)).tolist() == [0, 1]
    assert "is lost" in caplog.text and "wrong-one" not in caplog.text + repr(wrong)
    right = ArrayCache(server.url, "right-one")
    right.put("k", np.arange(3))
    assert right.failures == 0 and ArrayCache(server.url, "right-one").get("k").tolist() == [0, 1, 2]


def test_the_local_store_is_bounded_and_forgets_the_least_recently_used():
    store = ArrayCache(None, local_bytes=3 * 800)
    for name in "abc":
        store.put(name, np.zeros(100))
    store.get("a")
    store.put("d", np.zeros(100))
    assert [store.get(name) is None for name in "abcd"] == [False, True, False, False]
    store.put("huge", np.zeros(1000))
    assert store.get("huge") is None


def test_a_copied_store_opens_its_own_connection(url):
    store = ArrayCache(url, retry_every=1.0)
    store.put("copied", np.arange(3))
    again = copy.deepcopy(store)  # by the same methods that take it to a worker
    assert again.get("copied").tolist() == [0, 1, 2] and again.hits == 1


def test_values_expire_so_that_a_shared_server_does_not_fill_up(url):
    ArrayCache(url, expire=100).put("expiring", np.arange(3))
    assert 0 < redis.Redis.from_url(url).ttl("expiring") <= 100
