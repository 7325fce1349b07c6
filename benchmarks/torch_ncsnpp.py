"""NCSN++ for CIFAR-10 in plain PyTorch, with which `benchmarks.performance` compares.

Written from a description of the official network. Its parameters have the official names, so that official
weights and outputs test it (`tests/benchmarks/test_torch_ncsnpp.py`). It starts from PyTorch's own initial
weights, on which speed doesn't depend.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


def fir_kernel(channels: int, gain: float = 1.0) -> Tensor:
    """Return the resampling filter of sum `gain`, for a convolution of each channel by itself."""
    row = torch.tensor([1.0, 3.0, 3.0, 1.0])
    kernel = torch.outer(row, row)
    return (gain * kernel / kernel.sum()).expand(channels, 1, -1, -1).contiguous()


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(channels // 4, 32), channels, eps=1e-6)


def merged(x: Tensor, h: Tensor) -> Tensor:
    """The sum of two branches, with the variance of one."""
    return (x + h) * math.sqrt(0.5)


class FourierFeatures(nn.Module):
    """sin and cos of 2π·W·ln σ, with fixed random frequencies W."""

    def __init__(self, features: int):
        super().__init__()
        self.W = nn.Parameter(16 * torch.randn(features), requires_grad=False)

    def forward(self, sigma: Tensor) -> Tensor:
        angle = torch.log(sigma)[:, None] * self.W * 2 * math.pi
        return torch.cat([torch.sin(angle), torch.cos(angle)], 1)


class NIN(nn.Module):
    """Linear map of the last axis, whose weights have the inputs first."""

    def __init__(self, channels: int):
        super().__init__()
        self.W = nn.Parameter(nn.init.xavier_uniform_(torch.empty(channels, channels)))
        self.b = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.W.T, self.b)


class Attention(nn.Module):
    """Attention between all pixels, with one head, and a shortcut."""

    def __init__(self, channels: int):
        super().__init__()
        self.GroupNorm_0 = group_norm(channels)
        self.NIN_0, self.NIN_1, self.NIN_2, self.NIN_3 = (NIN(channels) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.GroupNorm_0(x).flatten(2).transpose(1, 2)[:, None]  # (batch, head, pixels, channels)
        h = functional.scaled_dot_product_attention(self.NIN_0(h), self.NIN_1(h), self.NIN_2(h))
        return merged(x, self.NIN_3(h)[:, 0].transpose(1, 2).reshape(x.shape))


class ResidualBlock(nn.Module):
    """Two normalised convolutions and a shortcut; `up` and `down` blocks resample both by the filter."""

    def __init__(self, inputs: int, outputs: int, time: int, resample: str = ""):
        super().__init__()
        self.resample = resample
        self.GroupNorm_0 = group_norm(inputs)
        self.Conv_0 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.Dense_0 = nn.Linear(time, outputs)
        self.GroupNorm_1 = group_norm(outputs)
        self.Conv_1 = nn.Conv2d(outputs, outputs, 3, padding=1)
        if resample:
            self.register_buffer("kernel", fir_kernel(inputs, 4.0 if resample == "up" else 1.0), False)
        if resample or inputs != outputs:
            self.Conv_2 = nn.Conv2d(inputs, outputs, 1)

    def resampled(self, x: Tensor) -> Tensor:
        filtered = functional.conv_transpose2d if self.resample == "up" else functional.conv2d
        return filtered(x, self.kernel, stride=2, padding=1, groups=x.shape[1])

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = functional.silu(self.GroupNorm_0(x))
        if self.resample:
            h, x = self.resampled(h), self.resampled(x)
        h = self.Conv_0(h) + self.Dense_0(functional.silu(time))[:, :, None, None]
        h = self.Conv_1(functional.silu(self.GroupNorm_1(h)))
        return merged(self.Conv_2(x) if hasattr(self, "Conv_2") else x, h)


class DownConv(nn.Module):
    """The filter, then a convolution with stride 2."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.Conv2d_0 = nn.Conv2d(inputs, outputs, 3, stride=2)
        self.register_buffer("kernel", fir_kernel(inputs), False)

    def forward(self, x: Tensor) -> Tensor:
        return self.Conv2d_0(functional.conv2d(x, self.kernel, padding=2, groups=x.shape[1]))


class NCSNpp(nn.Module):
    """Network from images `(batch, 3, height, width)` in [0, 1] and their noise levels σ to scores."""

    def __init__(
        self,
        num_filters: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        num_res_blocks: int = 4,
        attention_resolutions: Sequence[int] = (16,),
        image_size: int = 32,
    ):
        super().__init__()
        time, channels, pyramid = 4 * num_filters, num_filters, 3
        widths = [num_filters * multiplier for multiplier in multipliers]
        attends = [image_size // 2**level in attention_resolutions for level in range(len(widths))]

        start = [FourierFeatures(num_filters), nn.Linear(2 * num_filters, time), nn.Linear(time, time)]
        start.append(nn.Conv2d(3, num_filters, 3, padding=1))
        down, skipped = [], [num_filters]
        for level, width in enumerate(widths):
            for _ in range(num_res_blocks):
                down.append(ResidualBlock(channels, width, time))
                down += [Attention(width)] if attends[level] else []
                channels = width
                skipped.append(channels)
            if level < len(widths) - 1:
                down += [ResidualBlock(channels, channels, time, "down"), DownConv(pyramid, channels)]
                pyramid = channels
                skipped.append(channels)
        middle = [ResidualBlock(channels, channels, time), Attention(channels)]
        middle.append(ResidualBlock(channels, channels, time))
        up = []
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(num_res_blocks + 1):
                up.append(ResidualBlock(channels + skipped.pop(), width, time))
                channels = width
            up += [Attention(channels)] if attends[level] else []
            up += [ResidualBlock(channels, channels, time, "up")] if level else []
        end = [group_norm(channels), nn.Conv2d(channels, 3, 3, padding=1)]
        self.parts = [len(part) for part in (start, down, middle, up, end)]
        self.all_modules = nn.ModuleList([*start, *down, *middle, *up, *end])

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        modules = iter(self.all_modules)
        start, down, middle, up, end = ([next(modules) for _ in range(count)] for count in self.parts)
        fourier, dense_0, dense_1, stem = start
        time = dense_1(functional.silu(dense_0(fourier(sigma))))
        pyramid = 2 * x - 1
        skipped = [stem(pyramid)]
        for module in down:
            if isinstance(module, ResidualBlock):
                skipped.append(module(skipped[-1], time))
            elif isinstance(module, Attention):
                skipped[-1] = module(skipped[-1])
            else:
                skipped[-1] = pyramid = merged(module(pyramid), skipped[-1])
        block_0, attention, block_1 = middle
        h = block_1(attention(block_0(skipped[-1], time)), time)
        for module in up:
            if isinstance(module, Attention):
                h = module(h)
            else:
                h = module(h if module.resample else torch.cat([h, skipped.pop()], 1), time)
        norm, conv = end
        return conv(functional.silu(norm(h))) / sigma[:, None, None, None]
