"""Machines made of namespaces: each has its own address, processes, /tmp and home, an sshd, and sees no other.

They share this machine's files and kernel. When the program that made them ends, however it ends, the kernel ends all
that runs on them; nothing of the host is changed. Needs root. Knows nothing of Ray.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
NETWORK = "10.77.0"
"""Of the addresses; exists only inside the namespaces."""

# PID 1 of a machine. bash also reaps what other processes leave behind, as `ray stop` needs it.
_INIT = """
set -e
mount --bind {folder}/passwd /etc/passwd
mount --bind {folder}/shadow /etc/shadow
for path in {below_tmp}; do mkdir -p {folder}/tmp/${{path#/tmp/}}; mount --bind $path {folder}/tmp/${{path#/tmp/}}; done
mount --rbind {folder}/tmp /tmp
mount -t tmpfs -o size=16m tmpfs /run
mkdir -p /run/sshd
ip link set lo up
{sshd} -D -e -f {folder}/sshd_config 2> {folder}/sshd.log &
touch {folder}/ready
while true; do wait; sleep 1; done
"""

_SSHD = """
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
StrictModes no
PasswordAuthentication no
PermitRootLogin prohibit-password
PidFile none
"""


class Missed(AssertionError):
    """What was expected and did not come."""


def wait(what: str, ready: Callable[[], object], limit: float, every: float = 0.5):
    """What `ready` answers once it is true."""
    start = time.monotonic()
    while time.monotonic() < start + limit * busy():
        if answer := ready():
            print(f"  {what}: {time.monotonic() - start:.0f} s", flush=True)
            return answer
        time.sleep(every)
    raise Missed(f"{what}: not within {limit:.0f} s, on a machine {busy():.1f} times too busy")


def busy() -> float:
    """By how much everything takes longer here now: runnable processes for each CPU, at least 1."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def expect(condition: object, what: str) -> None:
    if not condition:
        raise Missed(what)


def missing() -> str | None:
    """Why machines cannot be made here; None where they can."""
    if not sys.platform.startswith("linux"):
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "root is needed for network namespaces"
    for program in ("ip", "rsync", "ssh", "ssh-keygen", "sshd", "unshare", "nsenter"):
        if _program(program) is None:
            return f"no {program} on this machine (apt-get install iproute2 openssh-server rsync util-linux)"
    probe = ["unshare", "--net", "--pid", "--fork", "--mount", "--mount-proc", "ip", "link", "set", "lo", "up"]
    done = subprocess.run(probe, capture_output=True, text=True, timeout=20)
    return None if done.returncode == 0 else f"namespaces are not allowed here ({done.stderr.strip()})"


@dataclass
class Machine:
    """One machine; `folder` holds its home, /tmp and sshd."""

    name: str
    address: str
    folder: Path
    holder: subprocess.Popen
    pid: int
    """Of its PID 1, as the host counts."""

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def command(self, *words: str, cwd: Path = ROOT, **environment: str) -> list[str]:
        """The command line that runs `words` on the machine, with nothing of the caller's environment."""
        plain = {"HOME": str(self.home), "USER": "root", "LOGNAME": "root", "LANG": "C.UTF-8", "TERM": "dumb"}
        plain["PATH"] = f"{self.home}/namm/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        settings = [f"{name}={value}" for name, value in {**plain, **environment}.items()]
        enter = ["nsenter", "-t", str(self.pid), "--net", "--pid", "--mount", "--", "env", "-i", *settings]
        return [*enter, "bash", "-c", 'cd "$0" && exec "$@"', str(cwd), *words]

    def running(self) -> list[tuple[psutil.Process, str]]:
        """What runs on the machine, with its name; what ends while it is looked at is left out."""
        found = []
        for process in self.processes():
            try:
                found.append((process, process.name()))
            except psutil.NoSuchProcess:
                continue
        return found

    def processes(self) -> list[psutil.Process]:
        """What runs on the machine, its PID 1 left out."""
        try:
            space = os.readlink(f"/proc/{self.pid}/ns/pid")
        except OSError:
            return []
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid != self.pid and os.readlink(f"/proc/{process.pid}/ns/pid") == space:
                    found.append(process)
            except OSError:
                continue
        return found

    def listening(self) -> set[tuple[str, int, str]]:
        """(address, port, program) of all TCP ports that are listened on."""
        words = ["nsenter", "-t", str(self.pid), "--net", "--pid", "--mount", "ss", "-Hltnp"]
        found = set()
        for line in subprocess.run(words, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines():
            fields = line.split()
            address, port = fields[3].rsplit(":", 1)
            found.add((address, int(port), fields[5].split('"')[1] if len(fields) > 5 else "?"))
        return found


class Machines:
    """A network of machines; the first, `operator`, is the bridge that the others hang on."""

    def __init__(self, folder: Path, names: list[str]):
        self.folder = folder
        self.key = folder / "key"
        self.all: list[Machine] = []
        _keygen(self.key)
        for number, name in enumerate(names, start=1):
            self.all.append(self._make(name, f"{NETWORK}.{number}"))
        for machine in self.all:
            self._attach(machine)

    def close(self) -> None:
        """Ends every machine with all that runs on it."""
        for machine in self.all:
            machine.holder.kill()  # --kill-child: PID 1 goes with it, and the kernel takes the rest
            machine.holder.wait()
        end = time.monotonic() + 10
        while any(psutil.pid_exists(machine.pid) for machine in self.all) and time.monotonic() < end:
            time.sleep(0.1)
        self.all.clear()

    def _make(self, name: str, address: str) -> Machine:
        folder = self.folder / name
        (folder / "home" / ".ssh").mkdir(parents=True)
        (folder / "tmp").mkdir(mode=0o1777)
        users = [line for line in Path("/etc/passwd").read_text().splitlines() if not line.startswith("root:")]
        (folder / "passwd").write_text("\n".join([f"root:x:0:0:root:{folder}/home:/bin/bash", *users]) + "\n")
        (folder / "shadow").write_text("root:*:19000:0:99999:7:::\n")
        _keygen(folder / "host_key")
        shutil.copy(self.key.with_suffix(".pub"), folder / "authorized_keys")
        (folder / "sshd_config").write_text(_SSHD.format(folder=folder))
        _virtual_environment(folder / "home" / "namm" / "venv", folder / "home" / "namm" / "code")
        # Other jobs share this machine's cores.
        (folder / "home" / ".bashrc").write_text("export OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0 TERM=dumb\n")
        needed = [ROOT, self.folder, *(Path(path).resolve() for path in (sys.prefix, sys.base_prefix))]
        below_tmp = " ".join(sorted({shlex.quote(str(path)) for path in needed if path.is_relative_to("/tmp")}))
        (folder / "init").write_text(_INIT.format(folder=folder, below_tmp=below_tmp, sshd=_program("sshd")))
        words = ["unshare", "--net", "--pid", "--fork", "--mount", "--mount-proc", "--kill-child"]
        with (folder / "init.log").open("wb") as log:
            holder = subprocess.Popen(
                [*words, "bash", str(folder / "init")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=lambda: ctypes.CDLL(None).prctl(1, signal.SIGKILL),  # PR_SET_PDEATHSIG
            )
        end = time.monotonic() + 20
        while not (folder / "ready").exists():
            if holder.poll() is not None or time.monotonic() > end:
                holder.kill()
                raise RuntimeError(f"machine {name} did not start: {(folder / 'init.log').read_text()}")
            time.sleep(0.02)
        return Machine(name, address, folder, holder, psutil.Process(holder.pid).children()[0].pid)

    def _attach(self, machine: Machine) -> None:
        bridge = self.all[0]
        if machine is bridge:
            _inside(machine, "ip link add bridge type bridge", f"ip addr add {machine.address}/24 dev bridge")
            _inside(machine, "ip link set bridge up")
            return
        _inside(bridge, f"ip link add {machine.name} type veth peer name eth0 netns {machine.pid}")
        _inside(bridge, f"ip link set {machine.name} master bridge up")
        _inside(machine, f"ip addr add {machine.address}/24 dev eth0", "ip link set eth0 up")
        _inside(machine, f"ip route add default via {bridge.address}")  # leads nowhere; Ray asks for it


def _inside(machine: Machine, *commands: str) -> None:
    for command in commands:
        words = ["nsenter", "-t", str(machine.pid), "--net", *command.split()]
        subprocess.run(words, check=True, capture_output=True, timeout=10)


def _program(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def _keygen(path: Path) -> None:
    words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL, timeout=20)


def _virtual_environment(folder: Path, code: Path) -> None:
    """What `pip install -e code` would have made, on the packages that are installed here: takes no minutes."""
    venv.create(folder, with_pip=False, symlinks=True)
    site = next((folder / "lib").glob("python*")) / "site-packages"
    installed = [path for path in sys.path if path.endswith("-packages")]
    (site / "installed.pth").write_text("\n".join([str(code), *installed]) + "\n")
    for name, entry in (("ray", "ray.scripts.scripts"), ("namm", "orchestrator.cli")):
        script = folder / "bin" / name
        script.write_text(f"#!{folder}/bin/python\nimport sys\nfrom {entry} import main\nsys.exit(main())\n")
        script.chmod(0o755)
    # The mark of the cluster file's setup command: nothing to install.
    (folder / ".installed").write_text((ROOT / "pyproject.toml").read_text() + (ROOT / "constraints.txt").read_text())
