"""Tensors with room after their last column: columns are added there without copying what is held already.

Whoever adds columns must know that the room is there, and that nobody else uses it. Knows nothing of what columns hold.
"""

from __future__ import annotations

import torch
from torch import Tensor


def roomy(tensor: Tensor, axis: int, room: int) -> Tensor:
    """A copy of a tensor with room for `room` more columns at the end of its axis `axis`."""
    shape = list(tensor.shape)
    shape[axis] += room
    copy = tensor.new_empty(shape).narrow(axis, 0, tensor.shape[axis])
    return copy.copy_(tensor)


def lengthened(tensor: Tensor, axis: int, new: int) -> Tensor:
    """The same tensor and `new` columns of its room, whose content is arbitrary."""
    shape = list(tensor.shape)
    shape[axis] += new
    return tensor.as_strided(shape, tensor.stride(), tensor.storage_offset())


def added(tensor: Tensor, axis: int, columns: Tensor) -> Tensor:
    """The same tensor and these columns, which are written into its room."""
    new = columns.shape[axis]
    longer = lengthened(tensor, axis, new)
    longer.narrow(axis, tensor.shape[axis], new).copy_(columns)
    return longer


def owned(tensor: Tensor) -> Tensor:
    """The same numbers without room: the tensor itself, or a copy."""
    if tensor.untyped_storage().nbytes() == tensor.nbytes:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)
