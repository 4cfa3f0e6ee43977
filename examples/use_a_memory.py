"""Drop a memory into `generate`: the same model, the same prompts, a third of the KV cache.

A small language model reads twelve texts of 1,544 tokens and answers one question about each, first with the stock
cache of transformers, then with the shipped NAMM as its memory. Nothing but the argument `cache` changes. Prints the
answers side by side and the bytes that the two caches hold; twelve texts are a demonstration, not a measurement. Takes
about 10 seconds on one core.

    python examples/use_a_memory.py
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache

from namm_core import MemoryCache, Namm
from workers.tasks.loading import load_tasks

MODEL, MEMORY = "models/recall-small", "models/recall-budget-namm"
SIZE = 0.3
"""Share of the tokens that the memory may keep; a number of tokens would do as well."""
NTK_ALPHA = 128
"""The model was trained on 256 tokens; this stretch of its rotary embedding lets it read 1,544."""


def main() -> None:
    """Prints one line for each text, then the totals."""
    config = AutoConfig.from_pretrained(MODEL)
    config.rope_parameters["rope_theta"] *= NTK_ALPHA ** (config.head_dim / (config.head_dim - 2))
    model = AutoModelForCausalLM.from_pretrained(MODEL, config=config)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    texts = load_tasks({"source": "recall", "tokens": 1544, "kinds": ["resident", "colour", "topic"]})
    right = {"full cache": 0, "memory": 0}
    sizes = {"full cache": 0, "memory": 0}

    print(f"{'question':<26}{'reference':<12}{'full cache':<12}memory")
    for index in range(12):
        sample = texts.sample(texts.tasks[index % 3], "heldout", index)
        prompt = tokenizer(sample.prompt, return_tensors="pt")
        answers = {}

        full = DynamicCache()
        tokens = model.generate(**prompt, cache=full, max_new_tokens=1, do_sample=False)
        answers["full cache"] = tokenizer.decode(tokens[0, -1:]).strip()
        sizes["full cache"] += sum(layer.keys.nbytes + layer.values.nbytes for layer in full.layers)

        with MemoryCache(model, Namm.from_pretrained(MEMORY, budget=SIZE)) as cache:  # undone at the end
            tokens = model.generate(**prompt, cache=cache, max_new_tokens=1, do_sample=False)
            answers["memory"] = tokenizer.decode(tokens[0, -1:]).strip()
            sizes["memory"] += cache.nbytes

        for name, answer in answers.items():
            right[name] += answer in sample.answers
        question = sample.prompt.rsplit("\n", 1)[1]
        print(f"{question:<26}{sample.answers[0]:<12}{answers['full cache']:<12}{answers['memory']}")

    print()
    for name in right:
        held, share = sizes[name] / 12 / 1024, sizes[name] / sizes["full cache"]
        print(f"{name:<12}{right[name]:>2} of 12 right, {held:,.0f} KiB of keys and values ({share:.2f})")


if __name__ == "__main__":
    main()
