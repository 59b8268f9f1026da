"""SimAM, which has no parameters (Yang et al., ICML 2021, "SimAM: A Simple, Parameter-Free Attention Module")."""

from torch import Tensor, nn

from .description import Description, Step
from .module import Gate


class SimAM(Gate):
    """Gate each pixel of x (B, C, H, W) by its energy, (x - mean)^2 / (4 (variance + e_lambda)) + 1 / 2 in its channel
    (eq. 5; the released code's constructor)."""

    def __init__(self, channels: int | None = None, e_lambda: float = 1e-4):
        super().__init__()
        self.e_lambda = e_lambda
        self.activaton = nn.Sigmoid()  # as the released code spells it
        self.description = Description("mean_var", (Step("energy", number=e_lambda),), "pixels")
        self._note_children()

    def _is_as_made(self) -> bool:
        return self.e_lambda == self.description.numbers[1] and super()._is_as_made()

    def parameters_in_order(self) -> list[Tensor]:
        return []

    def _through_children(self, x: Tensor) -> Tensor:
        count = x.shape[2] * x.shape[3] - 1
        squares = (x - x.mean(dim=(2, 3), keepdim=True)).square()
        variance = squares.sum(dim=(2, 3), keepdim=True) / max(count, 1)
        return x * self.activaton(squares / (4 * (variance + self.e_lambda)) + 0.5)

    def extra_repr(self) -> str:
        return f"e_lambda={self.e_lambda}"
