"""What is shown of an address: never a piece of its password, however malformed it is; else what helps."""

from __future__ import annotations

import random

import pytest

from orchestrator.addresses import check
from orchestrator.messages import first_line
from orchestrator.tracking.redaction import without_secrets
from tests.fuzz.addresses import draw
from workers.masking import masked_text, masked_url, well_formed

MANY = 20_000


@pytest.mark.parametrize(
    "address, shown",
    [
        ("redis://:pa:ss@host:1/0", "redis://***@host:1/0"),
        ("redis://me:pass@[::1]:6379/0?db=2", "redis://***@[::1]:6379/0?db=2"),
        ("unix:///tmp/s?db=0&password=pa", "unix:///tmp/s?db=0&password=***"),
        ("http://host:5000/a/b?token=x&y=z", "http://host:5000/a/b?token=***"),
        ("sqlite:////home/a@b/x%20y?z/mlflow.db", "sqlite:////home/a@b/x%20y?z/mlflow.db"),
        ("mysql+pymysql://me:pw@host/db", "mysql+pymysql://***@host/db"),
        ("s3://bucket/runs/a b", "s3://bucket/runs/a b"),
        ("s3://bucket/me@there/run", "s3://bucket/me@there/run"),
        ("abfs://runs@account.example/a", "abfs://runs@account.example/a"),
        ("s3://key:pass@bucket/runs", "s3://***@bucket/runs"),
        ("s3://key:1234/5678@bucket/runs", "s3://***"),
        ("simplecache::s3://bucket/runs", "simplecache::s3://bucket/runs"),
        ("127.0.0.1:6379", "127.0.0.1:6379"),
        ("redis://***@host:1/0", "redis://***@host:1/0"),
        # What cannot be read in one way only.
        ("redis://:pa/ss@127.0.0.1:6379/0", "redis://***"),
        ("https://me:p@ss@host/x", "https://***"),
        ("redis://:pass", "redis://***"),
        ("redis://me:pass", "redis://***"),
        ("redis:///:pass@host", "redis://***"),
        ("redis://:12#34@host", "redis://***"),
        ("redis://:1234/secret", "redis://***"),
        ("redis://:pass@", "redis://***"),
        (":pass@host:6379", "***"),
        ("redis:pass@host", "***"),
        ("pass://word@host", "***"),
    ],
)
def test_what_is_shown_of_an_address(address, shown):
    assert masked_url(address) == shown
    assert well_formed(address) == (not shown.endswith("***") or "=" in shown)
    assert masked_url(shown) == shown and masked_text(f"at {shown}, now") == f"at {shown}, now"


@pytest.mark.parametrize(
    "text, shown",
    [
        ("(redis://:pw@host:1/0): start it", "(redis://***@host:1/0): start it"),
        ("from http://a to redis://:pa ss/w@host:1, now", "from http://a to redis://***, now"),
        ("redis://:pa b://c d@host or http://b", "redis://*** or http://b"),
        ("name: '@best' is no plain folder name", "name: '@best' is no plain folder name"),
        ("connecting to me:pw@host:1", "connecting to ***@host:1"),
        ("a\nredis://:pw@host\n", "a\nredis://***@host\n"),
    ],
)
def test_what_is_shown_of_a_text(text, shown):
    assert masked_text(text) == shown


def test_no_piece_of_a_password_is_shown():
    rng = random.Random(0)
    for _ in range(MANY):
        secret = draw(rng)
        said = [masked_url(secret.address), first_line(OSError(f"cannot connect to {secret.address}: refused"))]
        said.append(str(without_secrets({"redis_url": secret.address, "a": {"b": [f"at {secret.address}"]}})))
        try:
            check(secret.address, "Redis", "redis://HOST:PORT/0")
        except ValueError as error:
            said.append(str(error))
            assert "\n" not in said[-1]
        for text in said:
            assert not secret.shown_in(text), f"{secret.address!r} is shown as {text!r}"
