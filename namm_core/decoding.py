"""What follows a prompt: how sure the model is of a reference, and its own greedy tokens, in as few calls as possible.

The reference is read in one call. The greedy answer follows the reference for as long as its tokens are the likeliest,
so that a right answer costs no further call, and any other is decoded from the first token that differs. The result is
that of decoding token by token. Knows nothing of tasks, text or how the prompt was read.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from namm_core.support import cache_argument


def along(
    model: PreTrainedModel,
    past: Cache,
    logits: Tensor,
    mask: Tensor,
    references: list[Tensor],
    limits: list[int],
) -> Tensor:
    """Logits (rows, places, vocabulary) before each row's reference and after each of its tokens; `past` is unchanged.

    logits: (rows, vocabulary), after the prompts; mask: (rows, columns) bool, their real tokens; references: (tokens,)
    int64 for each row; limits: most greedy tokens of each row. The last token of the longest reference is fed only
    where greedy tokens may follow it. No call is made where `logits` alone score all references. Shorter references are
    padded at the end, so that the places after a row's own hold arbitrary numbers.
    """
    longest = max(len(r) for r in references)
    if longest <= 1:
        return logits[:, None]
    width = longest - (longest >= max(limits))
    fed = pad_sequence(references, batch_first=True)[:, :width]
    out = model(
        fed.to(model.device),
        attention_mask=pad(mask, (0, width), value=True).to(model.device),
        position_ids=(mask.sum(1, keepdim=True) + torch.arange(width)).to(model.device),
        **{cache_argument(model): _fork(past)},
        use_cache=True,
    )
    return torch.cat([logits[:, None], out.logits.float()], dim=1)


def greedy(
    model: PreTrainedModel,
    past: Cache,
    scored: Tensor,
    mask: Tensor,
    references: list[Tensor],
    limits: list[int],
    stop: tuple[int, ...],
) -> list[list[int]]:
    """Each row's likeliest tokens, up to its limit, without the token that stops it; uses up `past`.

    scored: (rows, places, vocabulary), what `along` returns; the rest as there; stop: token ids that end an answer. All
    unfinished rows feed as many tokens as are known of each, and go on together. Finished rows leave the batch once
    they are half of it, since moving the others has its cost too.
    """
    likeliest = scored.argmax(-1).tolist()
    known = [_known(t, r.tolist())[:n] for t, r, n in zip(likeliest, references, limits, strict=True)]
    rows = [_until(tokens, stop) for tokens in known]
    left = [i for i, tokens in enumerate(rows) if len(tokens) == len(known[i]) < limits[i]]
    if not left:
        return rows
    step = min(len(rows[i]) for i in left)
    for i in left:
        rows[i] = rows[i][:step]
    here = torch.tensor(left)  # the rows in the batch
    if len(here) < len(rows):
        past.batch_select_indices(here.to(model.device))
        mask = mask[here]
    most = torch.tensor(limits)[here]
    over = torch.zeros(len(here), dtype=torch.bool)  # those of them that are finished
    fed = torch.tensor([rows[i] for i in left])
    given = {cache_argument(model): past}
    while True:
        positions = mask.sum(1, keepdim=True) + torch.arange(fed.shape[1])
        mask = pad(mask, (0, fed.shape[1]), value=True)
        out = model(
            fed.to(model.device),
            attention_mask=mask.to(model.device),
            position_ids=positions.to(model.device),
            **given,
            use_cache=True,
            logits_to_keep=1,
        )
        token = out.logits[:, -1].argmax(-1).cpu()
        step += 1
        over |= torch.isin(token, torch.tensor(stop, dtype=torch.int64))
        for row, new in zip(here[~over].tolist(), token[~over].tolist(), strict=True):
            rows[row].append(new)
        over |= most <= step
        if bool(over.all()):
            return rows
        if int(over.sum()) * 2 >= len(over):
            stay = torch.nonzero(~over)[:, 0]
            past.batch_select_indices(stay.to(model.device))
            token, mask, most, here, over = (t[stay] for t in (token, mask, most, here, over))
        fed = token[:, None]


def _known(likeliest: list[int], reference: list[int]) -> list[int]:
    """Greedy tokens that need no further call, given the likeliest at each place: up to the first that is not the
    reference's, or the one behind it."""
    agreed = 0
    for token, expected in zip(likeliest, reference, strict=False):
        if token != expected:
            break
        agreed += 1
    return likeliest[: agreed + 1]


def _until(tokens: list[int], stop: tuple[int, ...]) -> list[int]:
    """Tokens in front of the first that ends an answer."""
    return tokens[: next((i for i, token in enumerate(tokens) if token in stop), len(tokens))]


def _fork(past: Cache) -> Cache:
    """A second continuation of the same cache: layers replace their tensors, never write into them."""
    twin = copy.copy(past)  # of a `MemoryCache`: its `fork`
    twin.layers = [copy.copy(layer) for layer in past.layers]
    return twin
