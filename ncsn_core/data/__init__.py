"""Images as one uint8 tensor on the training device, and batches made from it there."""

from typing import TYPE_CHECKING

from ncsn_core._lazy import names_of

if TYPE_CHECKING:
    from ncsn_core.data.datasets import (
        DATASETS,
        SPLITS,
        batches,
        block_average,
        data_root,
        dequantize,
        load_images,
        load_labels,
        to_bytes,
        to_unit,
    )
    from ncsn_core.data.output import check_destination, write_images
    from ncsn_core.data.own import OwnImages, read_images
    from ncsn_core.data.pixels import as_images
else:
    __getattr__, __dir__ = names_of(
        __name__,
        {
            "datasets": (
                "DATASETS SPLITS batches block_average data_root dequantize load_images "
                "load_labels to_bytes to_unit"
            ),
            "output": "check_destination write_images",
            "own": "OwnImages read_images",
            "pixels": "as_images",
        },
    )

__all__ = [
    "DATASETS",
    "SPLITS",
    "OwnImages",
    "as_images",
    "batches",
    "block_average",
    "check_destination",
    "data_root",
    "dequantize",
    "load_images",
    "load_labels",
    "read_images",
    "to_bytes",
    "to_unit",
    "write_images",
]
