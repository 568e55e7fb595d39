"""Specimens made by a formula, for readers without data and for answers known in closed form."""

import numpy as np


def gaussian_image_mean(size: int = 5) -> np.ndarray:
    """Mean of the Gaussian images of the multi-target detection paper, ``(size, size)`` float32.

    Independent whole numbers, uniform on 0..4; the images themselves are this mean plus white
    noise of unit variance (Zabatani, Kreymer and Bendory 2023, section IV-A and its code). Always
    the same numbers for the same size.
    """
    return np.random.default_rng(2312_08500).integers(0, 5, (size, size)).astype(np.float32)
