"""Networks of torch, and the same in JAX with their weights."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

NUM_CLASSES = 3
SHAPES = {"image": (1, 6, 5), "audio": (4,)}


def make_network(modality: str, dtype: str) -> nn.Sequential:
    torch.manual_seed(len(modality))
    if modality == "audio":
        layers = [nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, NUM_CLASSES)]
    else:
        convolution = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()]
        layers = [*convolution, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24, NUM_CLASSES)]
    network = nn.Sequential(*layers).to(getattr(torch, dtype))
    for part in network:
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            assert part.running_mean is not None
            nn.init.normal_(part.running_mean)
    return network.eval()


class Summed(nn.Module):
    """The sum of the logits of all modalities."""

    def __init__(self, nets: nn.ModuleDict) -> None:
        super().__init__()
        self.nets = nets

    def forward(self, image: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        return self.nets["image"](image) + self.nets["audio"](audio)


class WithFeatures(nn.Module):
    """Logits, and what the last layer is given."""

    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.net[:-1](x)
        return self.net[-1](features), features


class OfTokens(nn.Module):
    """Embedded tokens, where a mask says so, times a factor."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, NUM_CLASSES, dtype=torch.float64)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.embedding(tokens) * x * mask[:, None]


def native(modality: str, network: nn.Module) -> Any:
    """The network as a function of JAX."""
    weights = {name: jnp.asarray(x.numpy(force=True)) for name, x in network.state_dict().items()}

    def dense(name: str, x: jax.Array) -> jax.Array:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"][None]

    def mlp(x: jax.Array) -> jax.Array:
        return dense("2", jnp.tanh(dense("0", x)))

    def convolutional(x: jax.Array) -> jax.Array:
        def per_channel(name: str) -> jax.Array:
            return weights[name][None, :, None, None]

        x = jax.lax.conv(x, weights["0.weight"], (1, 1), "SAME") + per_channel("0.bias")
        x = (x - per_channel("1.running_mean")) / jnp.sqrt(per_channel("1.running_var") + 1e-5)
        x = jax.nn.relu(x * per_channel("1.weight") + per_channel("1.bias"))
        x = x[..., :4].reshape(len(x), 4, 3, 2, 2, 2).max((3, 5))
        return dense("5", x.reshape(len(x), 24))

    return mlp if modality == "audio" else convolutional


def make_inputs(dtype: str, batch_size: int = 6) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {m: rng.normal(size=(batch_size, *shape)).astype(dtype) for m, shape in SHAPES.items()}
