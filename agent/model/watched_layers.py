"""Networks whose loop over their layers is a library's, made to tell of each layer that ends."""

from __future__ import annotations

from torch import nn

from agent.progress import layer_done


def watch(network: nn.Module) -> None:
    """Have every member of the network's module lists call `layer_done`.

    Hooks run outside of a `forward` that is compiled.
    """
    for module in network.modules():
        if isinstance(module, nn.ModuleList):
            for layer in module:
                layer.register_forward_hook(_note)


def _note(_layer: nn.Module, _inputs: object, _output: object) -> None:
    layer_done()
