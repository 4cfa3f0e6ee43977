"""The chaos test: a job on a real cluster, killed at from all sides, ends with the bits of the one left alone.

    python -m tests.system.chaos [--generations 20] [--seed 0] [--small] [--folder DIR]

It drives the service from outside, through processes and files. In every generation a worker is killed (-9) at a
random moment; the driver is killed three times and started again with --resume; Redis twice, MLflow once, and one
worker is stopped for good, which the job's own time limit must notice. Then everything is compared with the run of
the same job that was left alone. Ends with one line of figures; exit status 1 and the reasons where a bound is missed.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import yaml

from tests.system import verdict
from tests.system.faults import DRIVER, KINDS, MLFLOW, REDIS, STOP, WORKER, Disturber, draw
from tests.system.machines import busy
from tests.system.surroundings import ROOT, Surroundings, described

NAME = "chaos"
TIMEOUT = 15.0
"""Seconds that one evaluation may take (workers.timeout)."""
LIMIT = {False: 1200.0, True: 300.0}
"""Seconds that all of it may take, by whether it is small."""


def main(arguments: list[str] | None = None) -> int:
    """Runs both jobs and compares; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.system.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--generations", type=int, help="of the job (20; small: 4)")
    parser.add_argument("--seed", type=int, default=0, help="of the plan of faults (0)")
    parser.add_argument("--small", action="store_true", help="4 generations, one driver and one Redis killed")
    parser.add_argument("--folder", type=Path, help="keep runs and logs here; default: a folder that is removed")
    options = parser.parse_args(arguments)
    generations = options.generations or (4 if options.small else 20)
    if generations < 4:
        parser.error("--generations must be at least 4: the driver is not killed in each of them")
    if options.folder and options.folder.exists() and any(options.folder.iterdir()):
        parser.error(f"{options.folder} is not empty: name another folder")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    world = Surroundings(options.folder and options.folder.resolve())
    try:
        return _run(world, options, generations)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, signal.SIG_IGN)
        world.clean()


def _run(world: Surroundings, options: argparse.Namespace, generations: int) -> int:
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - started:7.1f} s  {text}", flush=True)

    plan = draw(options.seed, generations, *((1, 1) if options.small else (3, 2)))
    job = _job(world, generations)
    problems: list[str] = []
    try:
        world.start()
        say("Ray, Redis and MLflow answer")
        undisturbed = _disturber(world, "undisturbed", job, [], options.seed, None, say)
        pace, calm = undisturbed.run()
        say(f"undisturbed: {calm:.1f} s, {sum(pace.results)} results")
        world.redis.kill()  # the second job finds as little there as the first
        world.redis.start()
        world.redis.wait(10)
        disturbed = _disturber(world, "disturbed", job, plan, options.seed, pace, say)
        _, rough = disturbed.run()
        say(f"disturbed: {rough:.1f} s")
        world.mlflow.wait(60)
        folders = [run.watch.folder for run in (undisturbed, disturbed)]
        problems += verdict.differences(*folders, generations)
        problems += verdict.mlflow_differences(*folders, generations)
        problems += _missed(plan, disturbed, generations)
        problems += [f"a driver was refused: {words}" for words, away in disturbed.refused if "MLflow" not in away]
        problems += _taken(world)
        say("compared; Ray, Redis and MLflow are ended")
        problems += [f"left behind: {what}" for what in world.stop()]
    except RuntimeError as error:  # a server that does not start, or RunFailed
        problems.append(str(error))
    seconds = time.monotonic() - started
    if seconds > (limit := LIMIT[options.small] * busy()):
        problems.append(f"it took {seconds:.0f} s; at most {limit:.0f} s are allowed, as busy as this machine is")
    problems = list(dict.fromkeys(problems))  # what was left behind may have been seen twice
    for problem in problems:
        print(f"chaos: {problem}", flush=True)
    if problems:
        print(f"chaos: FAILED for {len(problems)} reason(s), seed {options.seed}, {seconds:.0f} s", flush=True)
        return 1
    journal = verdict.Journal(disturbed.watch.folder)
    count = Counter(hit.fault.kind for hit in disturbed.hits)
    print("left out of the comparison: " + "; ".join(f"{k}: {', '.join(v)}" for k, v in verdict.VOLATILE.items()))
    print(
        f"chaos: ok, {generations} generations, killed: {count[WORKER]} workers, {count[DRIVER]} drivers, "
        f"{count[REDIS]} Redis, {count[MLFLOW]} MLflow; {count[STOP]} worker stopped (dead "
        f"after {disturbed.stopped_for:.0f} s); {len(journal.results)} results, {journal.duplicates} told twice, "
        f"theta equal; undisturbed {calm:.0f} s, disturbed {rough:.0f} s with {len(disturbed.refused)} refused "
        f"starts; {seconds:.0f} s in all",
        flush=True,
    )
    return 0


def _disturber(world: Surroundings, name: str, job: dict, *rest) -> Disturber:
    folder = world.folder / name
    folder.mkdir()
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    return Disturber(world, folder, NAME, *rest)


def _job(world: Surroundings, generations: int) -> dict:
    """The smoke job, with so much to do in a generation that every kill falls into one: some seconds."""
    job = yaml.safe_load((ROOT / "configs" / "smoke.yaml").read_text())
    job["model"]["path"] = str(ROOT / job["model"]["path"])
    job |= {"name": NAME, "generations": generations, "mlflow_uri": world.mlflow_uri}
    job["search"]["population"], job["fitness"]["samples"] = 8, 6
    job["tasks"]["tokens"] = 520
    job["validation"] = {"every": 5, "samples": 2}
    job["workers"] = {"count": 2, "timeout": TIMEOUT, "ray_address": world.ray_address}
    return job


def _missed(plan: list, disturbed: Disturber, generations: int) -> Iterator[str]:
    """What of the plan was not carried out as it should be."""
    planned, done = (Counter(fault.kind for fault in some) for some in (plan, [hit.fault for hit in disturbed.hits]))
    for kind in KINDS:
        if planned[kind] != done[kind]:
            yield f"{kind}: {done[kind]} times, planned {planned[kind]}"
    hit = {hit.generation for hit in disturbed.hits if hit.fault.kind == WORKER}
    if spared := sorted(set(range(1, generations + 1)) - hit):
        yield f"no worker was killed in generation {', '.join(map(str, spared))}"
    if disturbed.stopped_for is None:
        yield "nobody killed the stopped worker"
    elif disturbed.stopped_for > TIMEOUT + 60:  # a call of several evaluations may take longer than one
        yield f"the stopped worker was dead after {disturbed.stopped_for:.0f} s; workers.timeout is {TIMEOUT:.0f} s"


def _taken(world: Surroundings, patience: float = 60.0) -> Iterator[str]:
    """What of the cluster is still taken after the jobs' end, and what else runs beside the servers."""
    end = time.monotonic() + patience
    while True:
        actors, free, all_of_it = world.cluster_state()
        if not actors and free == all_of_it and not world.workers():
            break
        if time.monotonic() > end:
            yield f"after {patience:.0f} s: actors alive: {actors}; free {free} of {all_of_it}"
            break
        time.sleep(1)
    yield from (f"left behind: {described(worker)}" for worker in world.workers())
    yield from (f"left behind: {described(process)}" for process in world.beside_services())


if __name__ == "__main__":
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    sys.exit(main())
