"""Images, volumes of any size and their headers: read and written with their pixel size."""

from emlab.io.images import (
    READABLE,
    WRITABLE,
    Image,
    axes_sizes,
    read_array,
    read_image,
    write_image,
)

__all__ = [
    "READABLE",
    "WRITABLE",
    "Image",
    "axes_sizes",
    "read_array",
    "read_image",
    "write_image",
]
