"""A small network that tells by how many quarter turns an image is turned."""

from __future__ import annotations

from torch import Tensor, nn


class TurnsNet(nn.Module):
    """Two convolutions and two layers: ``(n, L, L)`` in, logits ``(n, 4)`` of the turn out.

    Parameters
    ----------
    size : int
        L, a multiple of 4.
    width : int
        Channels of the first convolution; the second has twice as many.
    hidden : int
        Units of the layer before the last.
    """

    def __init__(self, size: int = 28, width: int = 16, hidden: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(2 * width * (size // 4) ** 2, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 4),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits of 0, 1, 2 and 3 quarter turns anticlockwise."""
        return self.layers(images[:, None])
