"""The `namm` command: finds a subcommand by its name, runs it, and says what is wrong in one line.

A subcommand is one file in `orchestrator.commands`, imported when it is called for, so that what only reads a result
loads neither Ray nor torch. The exit status is 0; 2 for what the caller can put right; 130 after Ctrl-C.
"""

from __future__ import annotations

import atexit
import codecs
import errno
import io
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

import click

from namm_core import plugins
from orchestrator.dispatch.work import WorkFailed
from workers.masking import masked_text

COMMANDS = "orchestrator.commands"
"""Package of the subcommands: each module has its `command`."""
INTERRUPTED = 130
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
"""Errors of a disk that is full or failing, not of this program."""


class Subcommands(click.Group):
    """The files of `orchestrator.commands`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return plugins.modules(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        return plugins.load(COMMANDS, cmd_name, "command").command


def _bytes_of_names(error: UnicodeError) -> tuple[bytes, int]:
    """Names of files that Python could not read in a locale such as C go out as the bytes that they are."""
    assert isinstance(error, UnicodeEncodeError)
    wrong = error.object[error.start : error.end]
    return b"".join(bytes([ord(c) - 0xDC00]) if 0xDC80 <= ord(c) <= 0xDCFF else b"?" for c in wrong), error.end


codecs.register_error("namm-names", _bytes_of_names)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the `namm` command; returns the exit status."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not every terminal has the letters of a table or of a task's name
            names = codecs.lookup(stream.encoding).name == "utf-8"
            stream.reconfigure(errors="namm-names" if names else "replace")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    namm = Subcommands("namm", help="Evolve, evaluate and look at NAMMs.", no_args_is_help=False)
    try:
        return namm.main(arguments, "namm", standalone_mode=False) or 0
    except click.UsageError as error:
        called = error.ctx.command_path if error.ctx else "namm"
        return _refused(f"{error.format_message()} (see {called} --help)")
    except (ValueError, WorkFailed) as error:
        return _refused(str(error))
    except OSError as error:
        if error.errno not in DISK:
            raise
        where = f" ({error.filename})" if error.filename else ""
        return _refused(f"{error.strerror}{where}; what was written is safe: make room, then --resume")
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED


def entry() -> None:
    """The `namm` program. After Ctrl-C it ends at once: torch and Ray take seconds to be taken apart, for nobody."""
    status = main()
    if status == INTERRUPTED:
        atexit._run_exitfuncs()  # Ray's own, and folders that are removed at the end
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)
    sys.exit(status)


def _refused(reason: str) -> int:
    print(f"namm: {masked_text(reason).splitlines()[0]}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    entry()
