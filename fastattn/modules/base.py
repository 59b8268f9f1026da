"""What the modules share."""

from torch import nn


class FastModule(nn.Module):
    """A module whose calls a backend serves: the one that `backend` names, or with None that of `get_backend()`."""

    backend: str | None = None
