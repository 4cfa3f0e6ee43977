"""Whether a Ray cluster answers at an address, before Ray itself is asked, which would wait for minutes.

Knows the addresses that Ray takes, and nothing of what is done there.
"""

from __future__ import annotations

import os
import socket

import grpc

from orchestrator.addresses import check
from orchestrator.messages import first_line

LOCAL = "local"
"""Starts Ray here."""
_LIKE = "HOST:PORT of a cluster's head, auto, ray://HOST:PORT, or local"
_CLIENT = "ray://"
_DEFAULT_CLIENT_PORT = "10001"


def address_of(given: str | None) -> str:
    """The address that counts: the one that is given, else RAY_ADDRESS's, which a submitted job has, else `local`."""
    return given or os.environ.get("RAY_ADDRESS") or LOCAL


def check_ray(address: str, patience: float = 8.0) -> None:
    """Returns if a Ray cluster answers at `address` within `patience` seconds, or if Ray is to be started here.

    Raises:
        ValueError: one line with the address, the reason, and what to do.
    """
    if address == LOCAL:
        return
    check(address, "Ray", _LIKE)
    if address == "auto":
        address = _found()
    host, colon, port = address.removeprefix(_CLIENT).partition("/")[0].rpartition(":")
    if address.startswith(_CLIENT) and not colon:
        host, port = port, _DEFAULT_CLIENT_PORT
    if not (host and port.isdigit() and int(port) < 65536):
        raise ValueError(f"Ray address {address!r} cannot be read: give {_LIKE}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=patience / 2).close()
        reason = (
            None
            if address.startswith(_CLIENT) or os.environ.get("RAY_USE_TLS") == "1"
            else _unhealthy(address, patience / 2)
        )
    except OSError as error:
        reason = error.strerror or first_line(error)
    if reason is not None:
        raise ValueError(
            f"no Ray cluster answers at {address} ({reason}): start it, correct workers.ray_address or RAY_ADDRESS, "
            f"or give workers.ray_address=local to start Ray here"
        )


def _unhealthy(address: str, patience: float) -> str | None:
    """Why Ray's head does not answer the question that gRPC servers are asked for their health; None if it does."""
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:  # as Ray's own are
        try:
            channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=patience, wait_for_ready=True)
        except grpc.RpcError as error:
            late = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            return f"what listens there gave no answer in {patience:.0f} s" if late else "what listens there is not Ray"
    return None


def _found() -> str:
    """Where the cluster on this machine answers, as Ray finds it."""
    from ray._private import services

    try:
        return services.canonicalize_bootstrap_address_or_die("auto")
    except ConnectionError as error:
        raise ValueError(
            f"no Ray cluster runs on this machine ({first_line(error)}): start one, or give its address or local as "
            "workers.ray_address or RAY_ADDRESS"
        ) from None
