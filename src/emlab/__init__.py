"""emlab: a specimen prior, a model of the microscope, and a solver that combines them."""

from importlib.metadata import PackageNotFoundError, version

DISTRIBUTION = "emlab-book"  # what is installed; another project is called emlab on the index

try:
    __version__ = version(DISTRIBUTION)
except PackageNotFoundError:  # run from a source tree that was not installed
    __version__ = "0+unknown"

__all__ = ["DISTRIBUTION", "__version__"]
