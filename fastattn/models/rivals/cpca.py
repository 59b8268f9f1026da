"""Channel Prior Convolutional Attention (arXiv 2306.05196)."""

from torch import Tensor, nn

STRIPS = (7, 11, 21)


class CPCA(nn.Module):
    """Gate the channels of x (B, C, H, W) by a bottleneck on their means and maxima, then the result by depthwise
    convolutions of itself, 5x5 and strips of 7, 11 and 21 (arXiv 2306.05196).

    As released, one 1x1 convolution serves at the input, on the gate and at the output. ValueError for fewer channels
    than `reduction`.
    """

    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()
        if channels < reduction:
            raise ValueError(f"channels must be at least reduction, got {channels} and {reduction}")
        hidden = channels // reduction
        self.mix = nn.Conv2d(channels, channels, 1)
        self.bottleneck = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, channels, 1))
        self.near = depthwise(channels, 5, 5)
        self.strips = nn.ModuleList(
            nn.Sequential(depthwise(channels, 1, size), depthwise(channels, size, 1)) for size in STRIPS
        )
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.mix(x))
        means, maxima = x.mean(dim=(2, 3), keepdim=True), x.amax(dim=(2, 3), keepdim=True)
        x = x * (self.bottleneck(means).sigmoid() + self.bottleneck(maxima).sigmoid())
        near = self.near(x)
        return self.mix(x * self.mix(near + sum(strip(near) for strip in self.strips)))


def depthwise(channels: int, height: int, width: int) -> nn.Conv2d:
    """A depthwise convolution that keeps a map's size."""
    return nn.Conv2d(channels, channels, (height, width), padding=(height // 2, width // 2), groups=channels)
