"""Arrays in memory take the place of a store: images, or anything else that has two dimensions and no sound.

    store = Arrays([image, ...])                          # each (frames, bands): columns x rows, from 0 up
    Trainer(store, "run", Settings(model=ModelConfig.of_arrays(bands=8, frames=8, patches=("2x2",)), ...)).train()

Whatever has two axes can be cut into patches; the axis that music calls time goes first.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xxhash

from myna.errors import StoreError
from myna.mel import FrontEnd
from myna.part import manifest_table
from myna.store import Store, compress


class Arrays(Store):
    """A store of arrays of non-negative numbers, (frames, bands) each, all of as many bands. Nothing is written.

    Values are kept within 0.2 %, as a store keeps power. Raises StoreError for arrays that cannot be kept.
    """

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        bands = {array.shape[1] if array.ndim == 2 else None for array in arrays}
        if len(bands) != 1 or None in bands:
            raise StoreError(
                f"Arrays of shapes {sorted({array.shape for array in arrays})} were given; (frames, bands) was wanted, "
                "with equally many bands."
            )
        if not all(np.isfinite(array).all() and (array >= 0).all() for array in arrays):
            raise StoreError("The arrays hold negative or non-finite numbers: shift them to begin at 0.")
        self.path, self.dtype = Path("arrays in memory"), "float16"
        self.front_end = FrontEnd(bands=bands.pop())
        self.files = [np.concatenate([compress(np.asarray(array, np.float32)) for array in arrays])]
        self.frames = np.array([len(array) for array in arrays], np.int64)
        self.row = np.cumsum(self.frames) - self.frames
        self.file_index = np.zeros(len(arrays), np.int32)
        self.paths = [f"array {number}" for number in range(len(arrays))]
        self.content_hashes = [xxhash.xxh3_128_hexdigest(np.ascontiguousarray(array)) for array in arrays]
        self.manifest = manifest_table([])

    def __reduce__(self):
        return Arrays, ([self.mel(number) for number in range(len(self))],)
