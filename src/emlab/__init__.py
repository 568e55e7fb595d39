"""emlab: a specimen prior, a model of the microscope, and a solver that combines them."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("emlab")
except PackageNotFoundError:  # run from a source tree that was not installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
