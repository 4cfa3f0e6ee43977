"""Acting through whole episodes with a Decision Transformer and a KV cache.

`DecisionTransformerModel.forward` has no cache: here only the tokens of one step are embedded, exactly as it does, and
read by its inner encoder. Knows of a memory only that it is a cache, and no tasks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import DecisionTransformerModel
from transformers.cache_utils import Cache, DynamicCache

from namm_core import MemoryCache
from workers.control.environments import Simulation


@dataclass(frozen=True)
class Lived:
    """What happened in one episode."""

    total: float
    """Its return."""
    steps: int
    kept: list[float]
    """Per layer: entries held / tokens fed at its end, mean over heads."""
    actions: np.ndarray
    """(steps, action numbers) the actions that the model took."""


def embed(model: DecisionTransformerModel, step: int, action: Tensor | None, to_go: Tensor, state: Tensor) -> Tensor:
    """The tokens of one step, (rows, 3, hidden): the action before, then return-to-go and state; 2 at the first step.

    action: (rows, model's action numbers) of step - 1, or None at step 0; to_go: (rows, 1) scaled; state: (rows,
    model's state numbers). The same arithmetic as `DecisionTransformerModel.forward`.
    """
    now = model.embed_timestep.weight[step]
    tokens = [model.embed_return(to_go) + now, model.embed_state(state) + now]
    if action is not None:
        tokens.insert(0, model.embed_action(action) + model.embed_timestep.weight[step - 1])
    return model.embed_ln(torch.stack(tokens, dim=1))


@torch.inference_mode()
def roll_out(
    model: DecisionTransformerModel, rows: list[Simulation], seeds: list[int], past: Cache | None = None
) -> list[Lived]:
    """Acts through one episode in each row, all rows in step; an episode that is over leaves the batch.

    seeds: what each row's environment is reset with; past: a fresh cache with as many rows; None: the stock full cache.
    """
    past = DynamicCache(config=model.config) if past is None else past
    device, dtype = model.device, model.dtype
    lived: dict[int, Lived] = {}
    alive = list(range(len(rows)))
    states = [row.reset(seed) for row, seed in zip(rows, seeds, strict=True)]
    history: list[list[np.ndarray]] = [[] for _ in rows]
    done, step = None, 0
    while alive:
        here = [rows[i] for i in alive]
        to_go = [row.about.to_go(row.total) for row in here]
        tokens = embed(
            model,
            step,
            done,
            torch.tensor(to_go, device=device, dtype=dtype)[:, None],
            columns([row.about.state_at for row in here], states, model.config.state_dim).to(device, dtype),
        )
        seen = model.encoder(
            inputs_embeds=tokens,
            position_ids=torch.zeros(tokens.shape[:2], dtype=torch.long, device=device),
            past_key_values=past,
            use_cache=True,
        ).last_hidden_state
        chosen = model.predict_action(seen[:, -1]).float().cpu().numpy()
        taken, states, staying = [], [], []
        for at, (i, row) in enumerate(zip(alive, here, strict=True)):
            start = row.about.action_at
            action = row.actions.settled(chosen[at, start : start + row.actions.width])
            history[i].append(action)
            state = row.step(action)
            if not row.over:
                taken.append(action)
                states.append(state)
                staying.append(at)
        if len(staying) < len(alive):
            kept = past.kept_fractions() if isinstance(past, MemoryCache) else None
            for at in sorted(set(range(len(alive))) - set(staying)):
                i = alive[at]
                held = [1.0] * len(past.layers) if kept is None else kept[at]
                lived[i] = Lived(rows[i].total, rows[i].steps, held, np.array(history[i]))
            alive = [alive[at] for at in staying]
            if alive:
                past.batch_select_indices(torch.tensor(staying, device=device))
        if alive:
            starts = [rows[i].about.action_at for i in alive]
            done = columns(starts, taken, model.config.act_dim).to(device, dtype)
        step += 1
    return [lived[i] for i in range(len(rows))]


def columns(starts: list[int], numbers: list[np.ndarray], width: int) -> Tensor:
    """(rows, width) float32: each row's numbers from its column in `starts` on, zeros elsewhere."""
    out = torch.zeros(len(numbers), width)
    for row, (start, given) in enumerate(zip(starts, numbers, strict=True)):
        out[row, start : start + len(given)] = torch.from_numpy(given)
    return out


@torch.inference_mode()
def roll_out_short(
    model: DecisionTransformerModel, rows: list[Simulation], seeds: list[int], context: int
) -> list[Lived]:
    """As `roll_out`, but without a cache, as Decision Transformers are commonly run: each action follows from the
    newest `context` steps, which are read again for it."""
    config, device = model.config, model.device
    lived: dict[int, Lived] = {}
    alive = list(range(len(rows)))
    seen = [[row.reset(seed)] for row, seed in zip(rows, seeds, strict=True)]
    asked = [[row.about.to_go(0.0)] for row in rows]
    history: list[list[np.ndarray]] = [[] for _ in rows]
    step = 0
    while alive:
        here = [rows[i] for i in alive]
        first = max(step + 1 - context, 0)
        states, actions = (torch.zeros(len(alive), step + 1 - first, n) for n in (config.state_dim, config.act_dim))
        for at, (i, row) in enumerate(zip(alive, here, strict=True)):
            a, s = row.about.action_at, row.about.state_at
            states[at, :, s : s + len(row.mean)] = torch.from_numpy(np.array(seen[i][first:]))
            if step > first:
                actions[at, :-1, a : a + row.actions.width] = torch.from_numpy(np.array(history[i][first:]))
        to_go = torch.tensor([asked[i][first:] for i in alive], dtype=torch.float32)[..., None]
        times = torch.arange(first, step + 1).expand(len(alive), -1)
        given = {"states": states, "actions": actions, "returns_to_go": to_go, "timesteps": times}
        chosen = model(**{name: t.to(device) for name, t in given.items()}).action_preds[:, -1].cpu().numpy()
        for at, (i, row) in enumerate(zip(alive, here, strict=True)):
            start = row.about.action_at
            action = row.actions.settled(chosen[at, start : start + row.actions.width])
            history[i].append(action)
            seen[i].append(row.step(action))
            asked[i].append(row.about.to_go(row.total))
            if row.over:
                lived[i] = Lived(row.total, row.steps, [1.0] * config.n_layer, np.array(history[i]))
        alive = [i for i in alive if i not in lived]
        step += 1
    return [lived[i] for i in range(len(rows))]
