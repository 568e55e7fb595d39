"""Data sets with hashes: mirror, then cache, then packages, then public URLs or build steps."""

from emlab.data.access import (
    Dataset,
    at_hand,
    available,
    cache_folder,
    fetch,
    load,
    path,
    paths,
    verify,
    where,
)
from emlab.data.digits import load_digits
from emlab.data.registry import Record, records

__all__ = [
    "Dataset",
    "Record",
    "at_hand",
    "available",
    "cache_folder",
    "fetch",
    "load",
    "load_digits",
    "path",
    "paths",
    "records",
    "verify",
    "where",
]
