"""Official four-stage NCSN and NCSNv2 in plain PyTorch, with which the benchmarks compare.

Written from a description of the official networks. Their parameters have the official names, so that
official weights and outputs test them (`tests/benchmarks/test_torch_peer.py`). It needs only torch and numpy.

In every block, `num_scales` is the number of noise levels that the norms are conditioned on. None makes a
block of NCSNv2: its norms have one γ, α and β, its refinement has no norms, and it pools by the maximum.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.torch_ncsnpp import NCSNpp
from benchmarks.worker import Work, serve

SIGMAS = torch.logspace(0, -2, 10)
"""Noise levels of the official experiments, 1 to 0.01."""


class InstanceNormPlus(nn.Module):
    """InstanceNorm++, with γ, α and β of each noise level or of all levels."""

    def __init__(self, channels: int, num_scales: int | None):
        super().__init__()
        self.num_scales = num_scales
        if num_scales is None:
            self.alpha = nn.Parameter(torch.normal(1.0, 0.02, (channels,)))
            self.gamma = nn.Parameter(torch.normal(1.0, 0.02, (channels,)))
            self.beta = nn.Parameter(torch.zeros(channels))
        else:
            self.embed = nn.Embedding(num_scales, 3 * channels)
            nn.init.normal_(self.embed.weight, 1.0, 0.02)
            nn.init.zeros_(self.embed.weight.data[:, 2 * channels :])

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        means = x.mean((2, 3))
        centred = means - means.mean(1, keepdim=True)
        shift = centred / torch.sqrt(means.var(1, keepdim=True) + 1e-5)
        if self.num_scales is None:
            vectors = self.gamma[None], self.alpha[None], self.beta[None]
        else:
            vectors = self.embed(level).chunk(3, 1)
        gamma, alpha, beta = (v[:, :, None, None] for v in vectors)
        return gamma * (functional.instance_norm(x) + alpha * shift[:, :, None, None]) + beta


class NoNorm(nn.Module):
    """Identity, where a block of NCSNv2 has no norm."""

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return x


def refine_norm(channels: int, num_scales: int | None) -> nn.Module:
    return NoNorm() if num_scales is None else InstanceNormPlus(channels, num_scales)


def conv3(inputs: int, outputs: int, dilation: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=bias)


class MeanPoolConv(nn.Module):
    """Convolution, then the mean of every 2×2 block."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return functional.avg_pool2d(self.conv(x), 2)


class ResidualBlock(nn.Module):
    """Two normalised convolutions plus a shortcut."""

    def __init__(
        self, inputs: int, outputs: int, num_scales: int | None, down: bool = False, dilation: int = 1
    ):
        super().__init__()
        middle = inputs if down else outputs
        self.normalize1 = InstanceNormPlus(inputs, num_scales)
        self.conv1 = conv3(inputs, middle, dilation)
        self.normalize2 = InstanceNormPlus(middle, num_scales)
        conv2 = conv3(middle, outputs, dilation)
        halves = down and dilation == 1
        self.conv2 = MeanPoolConv(conv2) if halves else conv2
        if halves:
            self.shortcut = MeanPoolConv(nn.Conv2d(inputs, outputs, 1))
        elif down:
            self.shortcut = conv3(inputs, outputs, dilation)
        else:
            self.shortcut = nn.Identity()

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        h = self.conv1(functional.elu(self.normalize1(x, level)))
        return self.shortcut(x) + self.conv2(functional.elu(self.normalize2(h, level)))


class RCUBlock(nn.Module):
    """Residual convolution units of two stages each."""

    def __init__(self, channels: int, num_blocks: int, num_scales: int | None):
        super().__init__()
        self.num_blocks = num_blocks
        for block in range(1, num_blocks + 1):
            for stage in (1, 2):
                self.add_module(f"{block}_{stage}_conv", conv3(channels, channels, bias=False))
                self.add_module(f"{block}_{stage}_norm", refine_norm(channels, num_scales))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        for block in range(1, self.num_blocks + 1):
            h = x
            for stage in (1, 2):
                h = functional.elu(self.get_submodule(f"{block}_{stage}_norm")(h, level))
                h = self.get_submodule(f"{block}_{stage}_conv")(h)
            x = x + h
        return x


class CRPBlock(nn.Module):
    """Chained residual pooling."""

    def __init__(self, channels: int, num_scales: int | None):
        super().__init__()
        self.convs = nn.ModuleList(conv3(channels, channels, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(refine_norm(channels, num_scales) for _ in range(2))
        self.pool = nn.AvgPool2d(5, 1, 2) if num_scales is not None else nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        x = functional.elu(x)
        path = x
        for conv, norm in zip(self.convs, self.norms, strict=True):
            path = conv(self.pool(norm(path, level)))
            x = x + path
        return x


class MSFBlock(nn.Module):
    """Multi-scale fusion."""

    def __init__(self, inputs: Sequence[int], outputs: int, num_scales: int | None):
        super().__init__()
        self.convs = nn.ModuleList(conv3(channels, outputs) for channels in inputs)
        self.norms = nn.ModuleList(refine_norm(channels, num_scales) for channels in inputs)

    def forward(self, inputs: Sequence[Tensor], level: Tensor) -> Tensor:
        total = torch.zeros(())
        for x, conv, norm in zip(inputs, self.convs, self.norms, strict=True):
            h = conv(norm(x, level))
            total = total + functional.interpolate(
                h, inputs[0].shape[2:], mode="bilinear", align_corners=True
            )
        return total


class RefineBlock(nn.Module):
    """Block of the refinement chain."""

    def __init__(
        self, inputs: Sequence[int], outputs: int, num_scales: int | None, num_output_blocks: int = 1
    ):
        super().__init__()
        self.adapt_convs = nn.ModuleList(RCUBlock(channels, 2, num_scales) for channels in inputs)
        self.msf = MSFBlock(inputs, outputs, num_scales) if len(inputs) > 1 else None
        self.crp = CRPBlock(outputs, num_scales)
        self.output_convs = RCUBlock(outputs, num_output_blocks, num_scales)

    def forward(self, inputs: Sequence[Tensor], level: Tensor) -> Tensor:
        adapted = [adapt(x, level) for adapt, x in zip(self.adapt_convs, inputs, strict=True)]
        x = self.msf(adapted, level) if self.msf is not None else adapted[0]
        return self.output_convs(self.crp(x, level), level)


class NCSN(nn.Module):
    """Network from images `(batch, channels, height, width)` and the indices of their levels to scores."""

    def __init__(self, channels: int, filters: int, num_scales: int | None = len(SIGMAS)):
        super().__init__()
        f, g, n = filters, 2 * filters, num_scales
        self.begin_conv = conv3(channels, f)
        self.res1 = nn.ModuleList([ResidualBlock(f, f, n), ResidualBlock(f, f, n)])
        self.res2 = nn.ModuleList([ResidualBlock(f, g, n, down=True), ResidualBlock(g, g, n)])
        self.res3 = nn.ModuleList(
            [ResidualBlock(g, g, n, down=True, dilation=2), ResidualBlock(g, g, n, dilation=2)]
        )
        self.res4 = nn.ModuleList(
            [ResidualBlock(g, g, n, down=True, dilation=4), ResidualBlock(g, g, n, dilation=4)]
        )
        self.refine1 = RefineBlock([g], g, n)
        self.refine2 = RefineBlock([g, g], g, n)
        self.refine3 = RefineBlock([g, g], f, n)
        self.refine4 = RefineBlock([f, f], f, n, num_output_blocks=3)
        self.normalizer = InstanceNormPlus(f, n)
        self.end_conv = conv3(f, channels)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        h = self.begin_conv(2 * x - 1)
        outputs = []
        for stage in (self.res1, self.res2, self.res3, self.res4):
            for block in stage:
                h = block(h, level)
            outputs.append(h)
        h = self.refine1(outputs[3:], level)
        h = self.refine2([outputs[2], h], level)
        h = self.refine3([outputs[1], h], level)
        h = self.refine4([outputs[0], h], level)
        return self.end_conv(functional.elu(self.normalizer(h, level)))


class NCSNv2(NCSN):
    """Network without conditioning inside, whose output is divided by σ."""

    def __init__(self, channels: int, filters: int, sigmas: Tensor = SIGMAS):
        super().__init__(channels, filters, num_scales=None)
        self.sigmas: Tensor
        self.register_buffer("sigmas", sigmas)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return super().forward(x, level) / self.sigmas[level][:, None, None, None]


class NCSNppOfLevels(NCSNpp):
    """NCSN++ of images and the indices of their levels, channels last, which is faster."""

    def __init__(self, filters: int):
        super().__init__(filters)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return super().forward(x, SIGMAS[level])


def prepare(case: dict[str, Any]) -> Work:
    """Return the work of a case (see `benchmarks.performance.Case`)."""
    torch.manual_seed(0)
    if case["network"] == "NCSN++":
        network = NCSNppOfLevels(case["filters"])
    else:
        network = NCSN(case["channels"], case["filters"])
    x = torch.rand(case["batch"], case["channels"], case["side"], case["side"])
    level = torch.randint(len(SIGMAS), (case["batch"],))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)

    def step() -> None:
        sigma = SIGMAS[level][:, None, None, None]
        noise = torch.randn_like(x)
        loss = ((network(x + sigma * noise, level) * sigma + noise) ** 2).sum((1, 2, 3)).mean() / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.inference_mode()
    def forward() -> None:
        network(x, level)

    @torch.inference_mode()
    def sampling() -> None:
        chains = torch.rand_like(x)
        for c, sigma in enumerate(SIGMAS):
            step_size = 2e-5 * (sigma / SIGMAS[-1]) ** 2
            score = network(chains, torch.full_like(level, c))
            chains = chains + step_size * score + torch.sqrt(2 * step_size) * torch.randn_like(x)

    return Work({"step": step, "forward": forward, "sampling": sampling}[case["work"]])


if __name__ == "__main__":
    serve(prepare)
