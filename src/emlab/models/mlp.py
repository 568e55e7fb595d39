"""A fully connected network whose divergence is known in closed form."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class MLP(nn.Module):
    """Two softplus layers, optionally conditioned on scalars.

    Parameters
    ----------
    size : int
        Number of inputs and outputs (pixels of a flattened image).
    hidden : int
        Width of both hidden layers.
    conditions : int
        Number of extra scalars appended to the input (a time or a log noise level).
    """

    def __init__(self, size: int, hidden: int = 256, conditions: int = 0) -> None:
        super().__init__()
        self.size = size
        self.first = nn.Linear(size + conditions, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.last = nn.Linear(hidden, size)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Map ``(n, size)`` (and ``(n,)`` or ``(n, conditions)``) to ``(n, size)``."""
        return self._outputs(x, condition)[0]

    def forward_with_divergence(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""Outputs ``(n, size)`` and their exact divergence ``(n,)``, the trace of the Jacobian.

        With weights :math:`W_1, W_2, W_3` and softplus slopes :math:`d_1, d_2` the Jacobian is
        :math:`W_3 D_2 W_2 D_1 W_1`, so its trace is
        :math:`d_2^\top \left(W_2 \circ (W_1 W_3)^\top\right) d_1`: one extra matrix product
        instead of one backward pass per pixel.
        """
        output, slope1, slope2 = self._outputs(x, None)
        inner = self.second.weight * (self.first.weight[:, : self.size] @ self.last.weight).T
        return output, ((slope2 @ inner) * slope1).sum(-1)

    def _outputs(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        if condition is not None:
            x = torch.cat([x, condition.reshape(len(x), -1)], dim=-1)
        before1 = self.first(x)
        before2 = self.second(functional.softplus(before1))
        output = self.last(functional.softplus(before2))
        return output, torch.sigmoid(before1), torch.sigmoid(before2)
