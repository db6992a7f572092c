"""Report what share of an image's work is done."""

from collections.abc import Callable

from torch import nn

from ..wrcan_arch import SIZE_MULTIPLE, WRCAN, Decoder, Encoder


class WorkDone:
    """Reports what share of an image's work is done. Work is the convolutions' multiplications in one feature column.

    Attributes:
        encoder_products, decoder_products: multiplications of one pass for each row of that column.
    """

    def __init__(self, network: WRCAN, height: int, progress: Callable[[float], None]) -> None:
        outer, inner = network.encoders
        assert isinstance(outer, Encoder) and isinstance(inner, Encoder)  # a ModuleList loses their type
        whole, half, quarter = (network.head, outer.conv), (outer.down, inner.conv), (inner.down, network.expand)
        self.encoder_products = 16 * weight_count(*whole) + 4 * weight_count(*half) + weight_count(*quarter)
        outer, inner = network.decoders
        assert isinstance(outer, Decoder) and isinstance(inner, Decoder)
        whole, half, quarter = (outer.conv, network.tail), (inner.conv, outer.up), (network.body_conv, inner.up)
        self.decoder_products = 16 * weight_count(*whole) + 4 * weight_count(*half) + weight_count(*quarter)
        products = 2 * self.encoder_products + weight_count(network.groups) + self.decoder_products
        self.total = products * height // SIZE_MULTIPLE
        self.done, self.progress = 0, progress

    def add(self, products: int) -> None:
        self.done += products
        self.progress(self.done / self.total)


def weight_count(*modules: nn.Module) -> int:
    """Number of weights in the modules' convolutions: each is one multiplication per output position."""
    convs = (conv for module in modules for conv in module.modules() if isinstance(conv, nn.Conv2d))
    return sum(conv.weight.numel() for conv in convs)
