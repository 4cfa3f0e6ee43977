"""Write a task source: one file with one class, and any policy can be asked its questions.

The source is `plugins/sources/depth.py` beside this program: one fact early, in the middle, or late in a text. Here 10
held-out samples of each are answered with the full cache, with the shipped NAMM and with StreamingLLM at its
size. Prints one sample and a table: what a policy forgets depends on where it stands. Takes about 15 seconds on one
core.

    python examples/write_a_task.py

In a job the same source is `plugins: [examples/plugins]`, `tasks: {source: depth, people: 8}`, `train: [early, late]`.
"""

from __future__ import annotations

from namm_core import Namm
from namm_core.config import NammConfig
from workers.config import EvaluatorConfig, ModelConfig
from workers.evaluator import Evaluator
from workers.unit import PolicySpec, SampleRef, Unit


def main() -> None:
    """Prints a sample, then one row for each policy."""
    memory = Namm.from_pretrained("models/recall-namm")
    evaluator = Evaluator(
        EvaluatorConfig(
            ModelConfig("models/recall-small", ntk_alpha=128),
            tasks={"source": "depth"},
            memory=NammConfig(update_interval=128),
            plugins=("examples/plugins",),
        )
    )
    tasks = evaluator.target.tasks
    sample = tasks.sample("middle", "heldout", 0)
    (start, end), (asked, _) = sample.relevant[1:]
    print(f"{sample.prompt[:60]} ... {sample.prompt[start - 22 : end + 22]} ... {sample.prompt[asked - 22 :]!r}")
    print(f"reference: {sample.answers[0]}\n")

    statistics = memory.statistics
    frozen = (statistics.mean.numpy(), statistics.var.numpy(), float(statistics.count))
    policies = [
        PolicySpec("full"),
        PolicySpec("namm", memory.theta.numpy(), frozen),
        PolicySpec("streaming", budget=0.65),
        PolicySpec("oracle"),
    ]
    print(f"{'policy':<12}{'kept':>6}" + "".join(f"{task:>9}" for task in tasks.tasks))
    for policy in policies:
        scores, kept = [], []
        for task in tasks.tasks:
            samples = [SampleRef(task, "heldout", index) for index in range(10)]
            results = [evaluator.evaluate(Unit((policy,), (sample,)))[0][0] for sample in samples]
            scores.append(sum(result.score for result in results) / len(results))
            kept += [result.kept for result in results]
        print(
            f"{policy.name:<12}{sum(kept) / len(kept):>6.2f}" + "".join(f"{score:>9.2f}" for score in scores),
            flush=True,
        )


if __name__ == "__main__":
    main()
