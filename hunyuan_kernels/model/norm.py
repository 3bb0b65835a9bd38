"""Root mean square norm."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """``normalize(x)`` times a gain for each of ``size`` channels, the last dimension."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__(size, epsilon)
        self.size, self.epsilon = size, epsilon
        self._epsilon, self._size = (
            torch.tensor(value, dtype=torch.float32, device="cpu") for value in (epsilon, size)
        )

    def normalize(self, x: Tensor) -> Tensor:
        """``x / sqrt(mean(x^2) + epsilon)``, computed in fp32.

        torch's norm consists of ten operators on a CPU. These six, in inference, take time off a decoding step of the
        small model, most of which is the overhead of operators. None of them adds to a product: what rounds depends on
        the place in a vector then, and a row would not be the same in another batch.
        """
        if torch.is_grad_enabled() or x.device.type != "cpu":
            return F.rms_norm(x, (self.size,), eps=self.epsilon)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        return (x * torch.addcdiv(self._epsilon, norm.mul_(norm), self._size).rsqrt_()).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.normalize(x) * self.weight
