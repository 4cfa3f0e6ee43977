"""Tensors with room behind their last column: columns are added there, and nothing that is held already is copied.

Who adds columns must know that the room is there, and nobody else's. Knows nothing of what columns hold.
"""

from __future__ import annotations

import torch
from torch import Tensor


def roomy(tensor: Tensor, axis: int, room: int) -> Tensor:
    """A copy of a tensor with room for so many columns behind those of its axis `axis`."""
    shape = list(tensor.shape)
    shape[axis] += room
    copy = tensor.new_empty(shape).narrow(axis, 0, tensor.shape[axis])
    return copy.copy_(tensor)


def lengthened(tensor: Tensor, axis: int, new: int) -> Tensor:
    """The same tensor with `new` columns of its room, in which anything may stand."""
    shape = list(tensor.shape)
    shape[axis] += new
    return tensor.as_strided(shape, tensor.stride(), tensor.storage_offset())


def added(tensor: Tensor, axis: int, columns: Tensor) -> Tensor:
    """The same tensor with these columns in its room."""
    new = columns.shape[axis]
    longer = lengthened(tensor, axis, new)
    longer.narrow(axis, tensor.shape[axis], new).copy_(columns)
    return longer


def owned(tensor: Tensor) -> Tensor:
    """The same numbers without room: the tensor itself, or a copy."""
    if tensor.untyped_storage().nbytes() == tensor.nbytes:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)
