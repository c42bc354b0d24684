"""How fast each layer of the adapter may move."""

import re
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from rlsf.config.strategies import LayersConfig
from rlsf.errors import ConfigError

_LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")
"""Number of the layer in a module's path, as transformers' models name them."""


def layer_of(name: str) -> int:
    """The layer that a weight belongs to, counted from 0.

    Raises:
        ConfigError: its path names none.
    """
    found = _LAYER.search(f".{name}.")
    if found is None:
        raise ConfigError(f"continual.layers: {name} lies in no numbered layer; rlsf.continual.layers knows none there")
    return int(found[1])


def check_layers(config: LayersConfig, names: Sequence[str]) -> None:
    """Raises ConfigError where a layer to be frozen does not exist."""
    depth = 1 + max(map(layer_of, names))
    outside = [layer for layer in config.freeze if not -depth <= layer < depth]
    if outside:
        raise ConfigError(f"continual.layers.freeze: the model has layers 0 to {depth - 1}, and no {outside[0]}")


def layer_rates(config: LayersConfig, names: Sequence[str], fisher: Sequence[Tensor] | None) -> list[float]:
    """Factor of the learning rate of each weight tensor.

    Args:
        names: paths of the weights, as `Policy.parameter_names` gives them.
        fisher: of the earlier tasks, by weight tensor; None leaves importance out.
    """
    layers = [layer_of(name) for name in names]
    depth = 1 + max(layers)
    frozen = {layer % depth for layer in config.freeze}
    slower = _importance(layers, fisher) if fisher is not None else dict.fromkeys(layers, 0.0)
    return [
        0.0 if layer in frozen else config.decay ** (depth - 1 - layer) / (1 + config.importance * slower[layer])
        for layer in layers
    ]


def _importance(layers: Sequence[int], fisher: Sequence[Tensor]) -> dict[int, float]:
    """Mean Fisher information of each layer over that of all weights; all 0 where there is none."""
    parts: dict[int, list[Tensor]] = defaultdict(list)
    for layer, part in zip(layers, fisher, strict=True):
        parts[layer].append(part.flatten())
    overall = float(torch.cat([part.flatten() for part in fisher]).mean())
    if overall == 0:
        return dict.fromkeys(layers, 0.0)
    return {layer: float(torch.cat(values).mean()) / overall for layer, values in parts.items()}
