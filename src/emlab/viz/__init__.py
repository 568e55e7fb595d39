"""One plotting voice: comparable panels share a grey range, and every picture has a description.

>>> fig = show_images({"measurement": y, "truth": x}, pixel_size_angstrom=1.34)   # doctest: +SKIP
>>> show(fig, alt="Noisy micrograph beside its noise-free truth.")                 # doctest: +SKIP
"""

from emlab.viz.curtains import curtain, plain_picture, strip
from emlab.viz.explorers import explore
from emlab.viz.images import show_images
from emlab.viz.panels import panels, picture
from emlab.viz.style import COLOURS, Picture, show, use_style

__all__ = [
    "COLOURS",
    "Picture",
    "curtain",
    "explore",
    "panels",
    "picture",
    "plain_picture",
    "show",
    "show_images",
    "strip",
    "use_style",
]
