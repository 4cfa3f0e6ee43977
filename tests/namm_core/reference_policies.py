"""What each policy should keep, from the papers' formulas in plain NumPy float64, and a model that shows it to them.

Nothing is cached and nothing is cut: the whole text runs anew for each update, with what was forgotten masked out for
later queries. Queries before rotation are those the model's projection puts out. Serves one row; knows nothing of the
code under test.
"""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import AttentionInterface, LlamaForCausalLM
from transformers.masking_utils import AttentionMaskInterface

NAME = "reference_policies"


def attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Softmax over what `module.visible` (KV heads, queries, keys) shows; leaves all that it saw in `module.seen`."""
    groups, tokens = query.shape[1] // key.shape[1], query.shape[2]
    visible = module.visible[:, :tokens, :tokens].repeat_interleave(groups, dim=0)
    scores = query @ key.repeat_interleave(groups, dim=1).transpose(2, 3) * scaling
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    module.seen = tuple(x[0].double().numpy() for x in (weights, key, value))
    return (weights @ value.repeat_interleave(groups, dim=1)).transpose(1, 2), None


AttentionInterface.register(NAME, attention_forward)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)


@dataclass
class Seen:
    """One layer at one update, for one KV head; K columns in all, held ones in `held`."""

    end: int  # tokens fed
    interval: int
    held: np.ndarray  # (held,) positions, ascending
    head: int
    weights: np.ndarray  # (query heads, end, end) attention probabilities
    keys: np.ndarray  # (end, size)
    values: np.ndarray  # (end, size)
    queries: np.ndarray  # (heads of this group, end, size), before rotation
    rotation: np.ndarray  # (size, size), mean over the next 512 positions

    @property
    def group(self) -> slice:
        """Query heads that read this KV head."""
        return slice(self.head * len(self.queries), (self.head + 1) * len(self.queries))


def h2o(seen: Seen, tokens: int) -> np.ndarray:
    """arXiv 2306.14048: all attention a key ever received; half the budget is the newest tokens."""
    received = seen.weights[seen.group].mean(0).sum(0)[seen.held]
    return _best(seen, np.where(seen.held >= seen.end - tokens // 2, np.inf, received), tokens)


def tova(seen: Seen, tokens: int) -> np.ndarray:
    """arXiv 2401.06104: the newest query, mean over all heads."""
    return _best(seen, seen.weights[:, seen.end - 1].mean(0)[seen.held], tokens)


def snapkv(seen: Seen, tokens: int, window: int, pooling: str) -> np.ndarray:
    """arXiv 2404.14469: the votes of the last queries since the last update, pooled over 7 neighbours in the text."""
    queries = slice(seen.end - min(window, seen.interval), seen.end)
    votes = np.zeros(seen.end)
    votes[seen.held] = seen.weights[seen.group, queries].sum(1).mean(0)[seen.held]
    start = seen.end - min(window, tokens)
    votes[start:] = 0
    around = [votes[max(p - 3, 0) : p + 4] for p in seen.held]
    pooled = np.array([a.max() if pooling == "max" else a.sum() / 7 for a in around])
    return _best(seen, np.where(seen.held >= start, np.inf, pooled), tokens)


def keydiff(seen: Seen, tokens: int) -> np.ndarray:
    """arXiv 2504.15364: cosine to the mean of the normalised keys that are held."""
    directions = np.stack([k / np.linalg.norm(k) for k in seen.keys[seen.held]])
    anchor = directions.mean(0)
    return _best(seen, -directions @ anchor / np.linalg.norm(anchor), tokens)


def expected_attention(seen: Seen, tokens: int) -> np.ndarray:
    """arXiv 2510.00636: queries are Gaussian, turned by the mean rotation of what is to come."""
    others = seen.held[seen.held >= 4]
    keys, size = seen.keys[others], seen.keys.shape[1]
    expected = np.zeros(len(others))
    for queries in seen.queries[:, 4 : seen.end]:
        mean = seen.rotation @ queries.mean(0)
        covariance = seen.rotation @ np.cov(queries.T, bias=True) @ seen.rotation.T
        attention = np.exp([k @ mean / np.sqrt(size) + k @ covariance @ k / (2 * size) for k in keys])
        expected += attention / attention.sum() / len(seen.queries)
    scores = np.full(len(seen.held), np.inf)
    scores[seen.held >= 4] = (expected + 0.01) * np.linalg.norm(seen.values[others], axis=1)
    return _best(seen, scores, tokens)


def _best(seen: Seen, scores: np.ndarray, tokens: int) -> np.ndarray:
    """The newest token and the best others; ties go to the older one."""
    scores = np.where(seen.held == seen.end - 1, np.inf, scores)
    return np.sort(seen.held[np.argsort(-scores, kind="stable")[:tokens]])


@torch.no_grad()
def run(model: LlamaForCausalLM, tokens: torch.Tensor, interval: int, decide) -> list[list[np.ndarray]]:
    """[layer][KV head] of the positions held after the text (T,), T a multiple of the interval."""
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    layers = [layer.self_attn for layer in model.model.layers]
    heads, size, total = model.config.num_key_value_heads, layers[0].head_dim, len(tokens)
    hooks = [m.q_proj.register_forward_hook(lambda p, _, out: setattr(p, "out", out[0])) for m in layers]
    held = [[np.empty(0, dtype=int)] * heads for _ in layers]
    for module in layers:
        module.visible = torch.ones(heads, total, total, dtype=torch.bool).tril()
    for end in range(interval, total + 1, interval):
        model(tokens[None, :end], use_cache=False)
        cos, sin = model.model.rotary_emb(torch.zeros(1), torch.arange(end, end + 512)[None])
        cos, sin = cos[0].double().mean(0), sin[0].double().mean(0)
        swap = torch.zeros(size, size, dtype=torch.float64)
        swap[: size // 2, size // 2 :], swap[size // 2 :, : size // 2] = -torch.eye(size // 2), torch.eye(size // 2)
        rotation = (torch.diag(cos) + sin[:, None] * swap).numpy()
        for layer, module in enumerate(layers):
            weights, keys, values = module.seen
            queries = module.q_proj.out.double().unflatten(1, (heads, -1, size)).permute(1, 2, 0, 3).numpy()
            for h in range(heads):
                columns = np.concatenate([held[layer][h], np.arange(end - interval, end)])
                seen = Seen(end, interval, columns, h, weights, keys[h], values[h], queries[h], rotation)
                held[layer][h] = decide(seen)
                module.visible[h, end:, np.setdiff1d(columns, held[layer][h])] = False
    for hook in hooks:
        hook.remove()
    model.set_attn_implementation(before)
    return held
