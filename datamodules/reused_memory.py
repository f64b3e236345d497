"""Memory for what is read again and again into tensors of one shape."""

import math
import weakref

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor


class ReusedMemory:
    """Tensors of one shape, in memory that comes back when no tensor looks at it any more.

    Memory new to the process is zeroed page by page when it is first written: that can take longer than a copy into it.

    Args:
        shape, dtype: of each tensor.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self._shape, self._dtype = shape, dtype
        self._free: list[UInt8[np.ndarray, " bytes"]] = []

    def borrow(self) -> Shaped[Tensor, "..."]:
        """A tensor with nothing in particular in it; it and its views keep the memory while they live."""
        size = math.prod(self._shape) * self._dtype.itemsize
        memory = self._free.pop() if self._free else np.empty(size, dtype=np.uint8)
        lease = memory.view()
        weakref.finalize(lease, self._free.append, memory).atexit = False
        return torch.from_numpy(lease).view(self._dtype).view(self._shape)
