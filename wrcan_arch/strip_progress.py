"""What share of an image's work is done."""

from collections.abc import Callable

from torch import nn

from .wrcan_arch import SIZE_MULTIPLE, WRCAN, Decoder, Encoder


class Progress:
    """Tells what share of an image's work is done, counted in the convolutions' products for a column of features.

    Attributes:
        encoder, decoder: the products that one pass takes for a row of the features.
    """

    def __init__(self, network: WRCAN, height: int, tell: Callable[[float], None]) -> None:
        outer, inner = network.encoders
        assert isinstance(outer, Encoder) and isinstance(inner, Encoder)  # a ModuleList forgets their type
        whole, half, quarter = (network.head, outer.conv), (outer.down, inner.conv), (inner.down, network.expand)
        self.encoder = 16 * weight_count(*whole) + 4 * weight_count(*half) + weight_count(*quarter)
        outer, inner = network.decoders
        assert isinstance(outer, Decoder) and isinstance(inner, Decoder)
        whole, half, quarter = (outer.conv, network.tail), (inner.conv, outer.up), (network.body_conv, inner.up)
        self.decoder = 16 * weight_count(*whole) + 4 * weight_count(*half) + weight_count(*quarter)
        self.total = (2 * self.encoder + weight_count(network.groups) + self.decoder) * height // SIZE_MULTIPLE
        self.done, self.tell = 0, tell

    def add(self, products: int) -> None:
        self.done += products
        self.tell(self.done / self.total)


def weight_count(*modules: nn.Module) -> int:
    """How many weights their convolutions have, each of which is a product for every position of the output."""
    convs = (conv for module in modules for conv in module.modules() if isinstance(conv, nn.Conv2d))
    return sum(conv.weight.numel() for conv in convs)
