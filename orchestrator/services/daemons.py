"""Programs that outlive the shell that starts them: started, found again and ended, never mistaken for others.

Knows processes, ports and files, and nothing of what the programs do.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

from orchestrator.storage import files


@dataclass(frozen=True)
class Daemon:
    """One program and the folder that it runs in; the pid file there says which process it is."""

    name: str
    """What a person calls it."""
    folder: Path
    """Where it runs and writes."""
    command: list[str]
    """Its command line; no secret stands in it."""
    addresses: list[str]
    """Where it listens."""
    port: int
    """Its TCP port."""
    environment: dict[str, str]
    """Added to the caller's."""
    settings: tuple[str, str]
    """Name and text of a file in the folder, for this user only; a program with another text is started again."""

    @property
    def pid_file(self) -> Path:
        """Holds its process id, and when it was started, in seconds after the boot."""
        return self.folder / "pid"

    @property
    def log(self) -> Path:
        """What it prints."""
        return self.folder / "log"

    def runs(self) -> bool:
        """Whether it runs with these settings."""
        file, text = self.folder / self.settings[0], self.settings[1]
        return self.process() is not None and file.exists() and file.read_text("utf-8") == text

    def process(self) -> psutil.Process | None:
        """The process that was started; None if it ended, whatever may bear its number now."""
        try:
            pid, born = self.pid_file.read_text("utf-8").split()
            process = psutil.Process(int(pid))
            # Counted from the boot, so that a clock that was set does not matter.
            alive = abs(_since_boot(process) - float(born)) < 0.5 and process.status() != psutil.STATUS_ZOMBIE
            return process if alive else None
        except (OSError, ValueError, psutil.Error):
            return None

    def processes(self) -> list[psutil.Process]:
        """The process that was started and what it left: members of its session that work in its folder."""
        try:
            session = int(self.pid_file.read_text("utf-8").split()[0])
        except (OSError, ValueError, IndexError):
            return []
        found = [main] if (main := self.process()) else []
        for process in psutil.process_iter():
            try:
                ours = os.getsid(process.pid) == session and process.cwd() == str(self.folder)
                if ours and process not in found and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (OSError, psutil.Error):
                continue
        return found

    def launch(self) -> subprocess.Popen:
        """Writes its settings and starts the program, with its output going to the log. Raises OSError."""
        file, text = self.settings
        files.write(self.folder / file, text, private=True)
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
                umask=0o077,  # what it writes is for its user alone
                start_new_session=True,  # neither Ctrl-C nor the end of the ssh session reaches it
            )
        self.pid_file.write_text(f"{process.pid} {_since_boot(psutil.Process(process.pid)):.2f}\n", "utf-8")
        return process

    def end(self) -> bool:
        """Ends the program and what it left behind; True where there was something to end."""
        ended = False
        for how, patience in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
            processes = self.processes()
            for process in processes:
                ended = True
                try:
                    process.send_signal(how)
                except psutil.Error:
                    pass
            psutil.wait_procs(processes, timeout=patience)
        self.pid_file.unlink(missing_ok=True)
        return ended

    def check_free(self) -> None:
        """Raises ValueError, one line that says what to do, where the port is taken or the address not ours."""
        for address in self.addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do
                try:
                    probe.bind((address, self.port))
                except OSError as error:
                    if error.errno == errno.EADDRINUSE:
                        raise ValueError(
                            f"port {self.port} on {address} is in use by another program: end it, "
                            f"or choose another port with --{self.name}-port"
                        ) from None
                    raise ValueError(
                        f"{address}:{self.port} cannot be listened on ({error.strerror}): "
                        "give this machine's private address with --bind"
                    ) from None


def _since_boot(process: psutil.Process) -> float:
    return process.create_time() - psutil.boot_time()
