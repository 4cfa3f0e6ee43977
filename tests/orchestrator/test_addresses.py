"""Addresses with a password: refused where they can be read in two ways, and not kept with a run."""

from __future__ import annotations

import pytest
import yaml

from orchestrator import addresses, spec
from orchestrator.services.redis_server import check_redis
from orchestrator.storage.object_store import Store
from orchestrator.tracking.store import check_mlflow

MALFORMED = ["pa/ss", "pa@ss", "pa#ss", "pa?ss", "pa ss", "pa%ss", "pa[ss", "pä/ss"]


@pytest.mark.parametrize("password", MALFORMED)
def test_a_password_with_a_raw_character_is_one_line_without_it(password):
    for check, address in (
        (check_redis, f"redis://:{password}@127.0.0.1:1/0"),
        (check_mlflow, f"http://me:{password}@127.0.0.1:1"),
        (check_mlflow, f"postgresql://me:{password}@127.0.0.1:1/db"),
        (Store, f"ftp://me:{password}@127.0.0.1:1/db"),
    ):
        with pytest.raises(ValueError) as caught:
            check(address)
        said = str(caught.value)
        assert "pa" not in said.replace("password", "").replace("space", "")
        assert "ss@" not in said and "127" not in said and "\n" not in said
        assert "cannot be read: give" in said and "/ as %2F" in said


def test_the_command_shows_and_records_no_password(namm, job_file, tmp_path):
    path = job_file(redis_url="redis://:pa/Sss@127.0.0.1:6379/0")
    printed, errors = (process := namm("evolve", path)).communicate(timeout=120)
    assert process.returncode == 2 and "Redis address 'redis://***' cannot be read" in errors
    assert "Sss" not in printed + errors and not (tmp_path / "runs" / "smoke").exists()
    printed, errors = (process := namm("evolve", path, "--dry-run", "mlflow_uri=http://me:Sss@host")).communicate()
    assert process.returncode == 0, errors
    assert "Sss" not in printed + errors and "redis://***" in printed
    _, errors = (process := namm("evolve", path, "redis://:pa/Sss@127.0.0.1:6379/0")).communicate()
    assert process.returncode == 2 and "is no override" in errors and "Sss" not in errors


def test_a_run_keeps_no_password_and_asks_for_it_again(smoke, tmp_path, monkeypatch):
    path = tmp_path / "job.yaml"
    own = {"redis_url": "redis://:Sss@host:1/0", "storage": "s3://bucket/me@there", "mlflow_uri": "http://host:5000"}
    path.write_text(yaml.safe_dump({**smoke, **own}))
    job = spec.read(path)
    spec.write(job, path)
    assert "Sss" not in path.read_text()
    again = spec.read(path)
    assert (again.storage, again.mlflow_uri) == (own["storage"], own["mlflow_uri"]) and again.digest() == job.digest()
    monkeypatch.delenv("REDIS_URL", raising=False)
    with pytest.raises(ValueError, match=r"redis_url redis://\*\*\*@host:1/0 had a password, .*: set REDIS_URL"):
        addresses.given(again.redis_url, "redis_url", "REDIS_URL")
    monkeypatch.setenv("REDIS_URL", own["redis_url"])
    assert addresses.given(again.redis_url, "redis_url", "REDIS_URL") == own["redis_url"]
    assert spec.read(path, [f"redis_url={own['redis_url']}"]).redis_url == own["redis_url"]
