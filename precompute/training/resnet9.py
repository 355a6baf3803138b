"""The paper's ResNet-9, for images of about 32 by 32 pixels (2.27 M parameters for CIFAR-10)."""

from functools import partial

from torch import Tensor, nn
from torch.nn.utils import skip_init


class Residual(nn.Module):
    """Adds a block's output to its input."""

    def __init__(self, *layers: nn.Module) -> None:
        """Keep the layers of the block."""
        super().__init__()
        self.block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return x + block(x)."""
        return x + self.block(x)


class Scale(nn.Module):
    """Multiplies by a constant."""

    def __init__(self, factor: float) -> None:
        """Keep the factor."""
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Return factor · x."""
        return self.factor * x


def resnet9(channels: int, classes: int, *, device: str) -> nn.Module:
    """Return the network, its weights not drawn yet.

    Args:
        channels: of an image.
        classes: how many there are.
        device: where the weights are.
    """
    conv = partial(_conv, device=device)
    return nn.Sequential(
        *conv(channels, 64),
        *conv(64, 128, kernel=5, stride=2, padding=2),
        Residual(*conv(128, 128), *conv(128, 128)),
        *conv(128, 256),
        nn.MaxPool2d(2),
        Residual(*conv(256, 256), *conv(256, 256)),
        *conv(256, 128, padding=0),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        skip_init(nn.Linear, 128, classes, bias=False, device=device),
        Scale(0.2),
    )


def _conv(
    inputs: int, outputs: int, *, device: str, kernel: int = 3, stride: int = 1, padding: int = 1
) -> tuple[nn.Module, ...]:
    layer = skip_init(nn.Conv2d, inputs, outputs, kernel, stride=stride, padding=padding, bias=False, device=device)
    return layer, nn.BatchNorm2d(outputs, device=device), nn.ReLU()
