"""Addresses that people give (Redis, MLflow, Ray, storage): which may be used at all. Opens none of them.

One that can be read in two ways is refused before anybody tries it: a library that reads it otherwise would say a
piece of its password, or send it to the wrong host. Passwords are not kept with a run: where a run is continued they
are given again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from workers.masking import HIDDEN, masked_url, well_formed

ADDRESSES = ("redis_url", "mlflow_uri", "storage", "ray_address")
"""Settings of a job that are addresses."""
_ENCODED = "in a password write / as %2F, @ as %40, # as %23, ? as %3F, a space as %20 and % as %25"


def check(address: str, what: str, like: str) -> None:
    """Returns if `address` can be read in one way only.

    what: whose it is, for the message; like: an example of a right one. Raises ValueError, one line.
    """
    if not address or not well_formed(address):
        raise ValueError(f"{what} address {masked_url(address)!r} cannot be read: give {like}; {_ENCODED}")


def given(value: str | None, setting: str, variable: str | None = None) -> str | None:
    """The address to use: the setting's value, else the environment variable's, else None.

    A password that was left out where the run was recorded (`kept`) must be given again: ValueError, one line.
    """
    found = os.environ.get(variable) if variable else None
    if value and HIDDEN in value:
        if found:
            return found
        again = f"set {variable}, or give {setting}=..." if variable else f"give {setting}=..."
        raise ValueError(f"{setting} {masked_url(value)} had a password, which is not kept with a run: {again}")
    return value or found or None


def kept(settings: object) -> object:
    """A job's settings (mappings, lists, texts, numbers) as they may be stored: no credentials in its addresses."""
    if isinstance(settings, Mapping):
        return {
            key: masked_url(value) if key in ADDRESSES and isinstance(value, str) else kept(value)
            for key, value in settings.items()
        }
    return [kept(value) for value in settings] if isinstance(settings, list) else settings
