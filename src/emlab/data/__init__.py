"""Data sets with hashes: mirror, then cache, then packages, then public URLs or build steps."""

from emlab.data.access import (
    Dataset,
    at_hand,
    available,
    cache_folder,
    fetch,
    load,
    mirror_folder,
    path,
    paths,
    verify,
    where,
)
from emlab.data.digits import Digits, load_digits
from emlab.data.registry import DataFile, Record, records

__all__ = [
    "DataFile",
    "Dataset",
    "Digits",
    "Record",
    "at_hand",
    "available",
    "cache_folder",
    "fetch",
    "load",
    "load_digits",
    "mirror_folder",
    "path",
    "paths",
    "records",
    "verify",
    "where",
]
