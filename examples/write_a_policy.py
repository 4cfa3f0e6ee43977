"""Write a policy: one file with one class, found by its name, held against the others at the same size.

The policy is `plugins/policies/large_keys.py` beside this program: it keeps the tokens whose keys have the largest
norm. Here 28 held-out samples are answered with 0.47 of the cache under several policies, by the evaluator that every
worker runs (no Ray, Redis or MLflow). Prints a table of scores; 28 samples rank policies roughly, `namm evaluate`
gives intervals. Takes about 20 seconds on one core.

    python examples/write_a_policy.py

In a job the same policy is `plugins: [examples/plugins]` and `evaluation: {policies: [full, namm, large_keys]}`, with
an option `{name: large_keys, recent: 64}`.
"""

from __future__ import annotations

from namm_core import Namm
from namm_core.config import NammConfig
from workers.config import EvaluatorConfig, ModelConfig
from workers.evaluator import Evaluator
from workers.unit import PolicySpec, SampleRef, Unit

KINDS = ["resident", "passkey", "topic", "latest", "residence", "colour", "journey"]
BUDGET = 0.47
"""Share of the cache that each policy holds after the prompt; the NAMM's own."""


def main() -> None:
    """Prints one row for each policy: the share of the cache it held, and its score on each kind of question."""
    memory = Namm.from_pretrained("models/recall-namm")
    evaluator = Evaluator(
        EvaluatorConfig(
            ModelConfig("models/recall-small", ntk_alpha=128),
            tasks={"source": "recall", "tokens": 1544, "kinds": KINDS},
            memory=NammConfig(update_interval=128),
            plugins=("examples/plugins",),
        )
    )
    statistics = memory.statistics
    policies = {
        "full": PolicySpec("full"),
        "namm": PolicySpec(
            "namm",
            memory.theta.numpy(),
            (statistics.mean.numpy(), statistics.var.numpy(), float(statistics.count)),
        ),
        "large_keys": PolicySpec("large_keys", budget=BUDGET),
        "large_keys(recent=400)": PolicySpec("large_keys", budget=BUDGET, options={"recent": 400}),
        "keydiff": PolicySpec("keydiff", budget=BUDGET),
        "streaming": PolicySpec("streaming", budget=BUDGET),
    }
    print(f"{'policy':<24}{'kept':>6}{'mean':>7}  " + "".join(f"{kind:>11}" for kind in KINDS))
    for label, policy in policies.items():
        scores, kept = [], []
        for kind in KINDS:
            samples = [SampleRef(kind, "heldout", index) for index in range(4)]
            results = [evaluator.evaluate(Unit((policy,), (sample,)))[0][0] for sample in samples]
            scores.append(sum(result.score for result in results) / len(results))
            kept += [result.kept for result in results]
        row = "".join(f"{score:>11.2f}" for score in scores)
        print(f"{label:<24}{sum(kept) / len(kept):>6.2f}{sum(scores) / len(scores):>7.3f}  {row}", flush=True)


if __name__ == "__main__":
    main()
