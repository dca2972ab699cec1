"""What a processor computes better by hand: decoder layers, and attention over shared-prefix rows.

This is the only entrance: the rest of pobench imports the names below, and none of the modules inside. On a GPU the layers
serve too, where they are not compiled: they keep less for the backward pass there as here.
"""

from pobench.model.cpu.attention import takes_parts, use_parts
from pobench.model.cpu.exchange import exchange_layers, own_layers, restore_layers
from pobench.model.cpu.layers import is_exchanged
from pobench.model.cpu.prefix_attention import mask_of_parts

__all__ = [
    "exchange_layers",
    "is_exchanged",
    "mask_of_parts",
    "own_layers",
    "restore_layers",
    "takes_parts",
    "use_parts",
]
