"""Hand-written decoder layers, and attention over shared-prefix rows, for processors.

The rest of pobench imports only the names below. The layers also serve on a GPU, unless they are compiled: there too they keep
less for the backward pass.
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
