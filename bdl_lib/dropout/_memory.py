"""How much memory a computation holds at its peak, seen operation by operation.

Chapter: book/07-dropout.ipynb
"""

import weakref

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["PeakMemory"]


class PeakMemory(TorchDispatchMode):
    """Within, sums the bytes of all tensors that were made and still live; ``peak_bytes`` is the most there were.

    The scratch space that an operation takes and gives back by itself is not seen.
    """

    def __init__(self):
        super().__init__()
        self.live_bytes, self.peak_bytes = 0, 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # else PyTorch imports its compiler, for two seconds
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outputs = func(*args, **(kwargs or {}))
        if all(each.alias_info is None for each in func._schema.returns):  # neither a view nor in place
            for tensor in tree_leaves(outputs):
                if isinstance(tensor, Tensor):
                    self._add(tensor.nbytes)
                    weakref.finalize(tensor, self._add, -tensor.nbytes).atexit = False
        return outputs

    def _add(self, num_bytes: int) -> None:
        self.live_bytes += num_bytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
