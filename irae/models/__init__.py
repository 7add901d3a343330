"""Networks: the invertible autoencoder, its blocks, and what they are built of."""

from irae.models.blocks import BLOCKS, build_block
from irae.models.irae import IRAE, Code, IRAEConfig, RecoverError, Rest

__all__ = ["BLOCKS", "IRAE", "Code", "IRAEConfig", "RecoverError", "Rest", "build_block"]
