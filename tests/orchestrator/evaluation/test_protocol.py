"""`evaluation.protocol`: every policy of a comparison is measured by the same one, and results say which."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from namm_core import Namm, NammConfig
from orchestrator import session
from orchestrator.evaluation import curve_spec
from orchestrator.evaluation.held_out import compare, facts
from orchestrator.policy_entries import policy_entries
from orchestrator.report.summary import summarise
from orchestrator.report.tables import markdown
from orchestrator.session import evaluator_config
from orchestrator.spec import read
from orchestrator.storage.journal import policy_key
from workers.evaluator import Evaluator
from workers.unit import PolicySpec, SampleRef, SampleResult, Unit

CONFIGS = Path(__file__).parents[3] / "configs"
ROWS = policy_entries(["full", "namm", "keydiff", {"name": "l2", "sinks": 4}])


@pytest.fixture(scope="module")
def job():
    return read(
        CONFIGS / "smoke.yaml", ["evaluation.protocol=context", f"model.path={CONFIGS.parent}/models/recall-small"]
    )


def test_all_policies_of_a_table_forget_by_the_jobs_protocol(job):
    evaluator = Evaluator(evaluator_config(job))
    used: set[str] = set()

    def evaluated(specs, samples, progress=lambda done: None) -> list[list[SampleResult | None]]:
        used.update(spec.protocol + " " + spec.name for spec in specs)
        return [evaluator.evaluate(Unit((spec,), tuple(samples)))[0] for spec in specs]

    saved = Namm.from_pretrained(CONFIGS.parent / "models" / "recall-namm")
    memory = PolicySpec("namm", saved.theta.numpy(), protocol=job.evaluation.protocol)
    samples = [SampleRef(kind, "heldout", 0) for kind in job.kinds]
    records = compare(evaluated, memory, ROWS, samples)
    assert used == {"context namm", "context keydiff", "context l2", "streaming full"}
    about = {"protocol": job.evaluation.protocol, "trained_tasks": list(job.train), "heldout_tasks": list(job.heldout)}
    result = summarise(records, about)
    own = result["policies"]["namm"]["kept"]
    assert all(result["policies"][name]["kept"] == pytest.approx(own, abs=0.01) for name in ("keydiff", "l2(sinks=4)"))
    assert "memories forget once, when the context has been read and before the question is" in markdown(result)
    assert "memories forget at every update" in markdown({**result, "protocol": "streaming"})
    assert facts(ROWS[2], NammConfig(), "context") == {"over": "head", "protocol": "context"}


def test_results_of_one_protocol_are_never_taken_for_those_of_the_other():
    streaming, context = (PolicySpec("l2", budget=0.3, protocol=name) for name in ("streaming", "context"))
    assert policy_key(streaming) != policy_key(context)
    assert policy_key(streaming) == policy_key(PolicySpec("l2", budget=0.3))


def test_an_evaluation_takes_it_from_the_job(job):
    entries = policy_entries(["keydiff"])
    asked = curve_spec.EvaluateSpec(job, str(CONFIGS.parent / "models" / "recall-namm"), entries, samples=3)
    spec, memories = curve_spec.checked(asked)
    assert {memory.protocol for memory in memories.values()} == {spec.job.evaluation.protocol} == {"context"}
    assert spec.tuned(0.5).protocol == "context"


def test_tasks_that_do_not_say_where_a_question_begins_are_refused_before_anything_starts(tmp_path, job):
    (tmp_path / "vt.jsonl").write_text('{"input": "Anna is in Paris. Where is she?", "outputs": ["Paris"]}')
    tasks = {"source": "ruler", "path": str(tmp_path), "tasks": ["vt"], "disjoint": False}
    other = dataclasses.replace(job, tasks=tasks, train=("vt",), heldout=())
    with pytest.raises(ValueError, match="evaluation.protocol context needs tasks .* source ruler does not"):
        session.checked(other)
