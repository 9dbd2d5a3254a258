"""Self-supervised music representations: masking-based contrastive learning (Myna, arXiv 2502.12511)."""

from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from myna.embedder import Myna

__version__ = version("myna-music")
__all__ = ["Myna", "__version__"]


def __getattr__(name: str) -> object:
    # `import myna` costs nothing; PyTorch is loaded when the model is asked for
    if name == "Myna":
        from myna.embedder import Myna

        return Myna
    raise AttributeError(f"module 'myna' has no attribute {name!r}")
