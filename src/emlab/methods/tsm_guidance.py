"""What references say about a micrograph: maps that guide training, and the result itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy
import torch
from torch import Tensor

from emlab.errors import InputError
from emlab.physics.noise_estimation import estimate_noise_sigma
from emlab.priors.pose_posterior import Lens, Reference
from emlab.priors.target_bank import Matcher, coarsen

BACKGROUND_ANGSTROM = 150.0  # standard deviation of the blur that is taken off first
CLIP = 6.0  # what is darker or brighter than so many sigmas of noise is no protein
_NUISANCE_ANGSTROM = 30.0
_NULL_PATCHES = 64
_TRIED, _THRESHOLD, _MOST = 48, 4.5, 400  # targets, robust sigmas of a candidate, candidates
_MARGIN = 6.0  # standard deviations of the decoys by which a reference has to beat them
_UNSURE = 0.01  # places whose share is less are left to the score


@dataclass(frozen=True)
class Standardised:
    """A micrograph in units of its noise, without its background.

    Attributes
    ----------
    image : Tensor
        ``(H, W)`` float32; the noise has unit variance.
    background : Tensor
        ``(H, W)`` in the units of the micrograph.
    sigma : float
        Noise in the units of the micrograph.
    """

    image: Tensor
    background: Tensor
    sigma: float

    def restore(self, image: Tensor) -> Tensor:
        """Back to the units of the micrograph, background included."""
        return image * self.sigma + self.background


def standardise(
    micrograph: Tensor | np.ndarray, pixel_size_angstrom: float, sigma: float | None = None
) -> Standardised:
    """Take off the background and divide by the noise, which is estimated from the image.

    Parameters
    ----------
    micrograph : Tensor or ndarray
        ``(H, W)``, at least 64 pixels a side, any grey range.
    sigma : float, optional
        Standard deviation of the noise instead of the estimate.

    Raises
    ------
    InputError
        Not an image, too small, constant or not finite, or a sigma that is not positive.
    """
    values = np.asarray(micrograph, dtype=np.float32)
    if values.ndim != 2:
        raise InputError(f"a micrograph is (H, W), got {values.shape}; give one image of a stack")
    found = estimate_noise_sigma(values) if sigma is None else sigma
    if not found > 0:
        raise InputError("the micrograph is constant, or the noise given is not positive")
    width = BACKGROUND_ANGSTROM / pixel_size_angstrom
    coarse = max(1, int(width // 8))
    background = _blur(values, width, coarse)
    image = torch.from_numpy((values - background) / np.float32(found))
    return Standardised(image, torch.from_numpy(background), float(found))


@dataclass(frozen=True)
class Guides:
    """What a bank says about a whole micrograph.

    Attributes
    ----------
    guess, confidence : Tensor
        ``(H, W)``, in units of the noise, and in [0, 1]; both 0 where no particle is.
    coordinates, similarity
        ``(n, 2)`` places (y, x) of patches that were compared, ``(n,)`` their largest cosines.
    null : float
        Cosine that nineteen in twenty random places stay below.
    amplitude : float
        Of the guesses, fitted to the micrograph.
    """

    guess: Tensor
    confidence: Tensor
    coordinates: np.ndarray
    similarity: Tensor
    null: float
    amplitude: float


def guide(image: Tensor, matcher: Matcher, generator: torch.Generator) -> Guides:
    """Find particles, ask the bank what they are, and paste the answers.

    Candidates are the peaks of the correlation with 48 targets of the bank, higher than 4.5 robust
    standard deviations, the best 400 at most. A candidate counts if its cosine is above that of 19
    in 20 random places; its confidence is then 1 - H(w)/ln m inside the particle's disc. What the
    pasted targets leave of the image is blurred by 30 A and added: the guess knows nothing of
    background.

    Parameters
    ----------
    image : Tensor
        ``(H, W)`` of `standardise`.
    """
    calm = image.clamp(-CLIP, CLIP)
    box, radius = matcher.bank.box, matcher.radius_angstrom / matcher.bank.pixel_size_angstrom
    templates = matcher.templates.reshape(-1, box // 2, box // 2)
    places = propose(calm, templates, max(2, int(radius / 2)), box, generator)
    elsewhere = _elsewhere(image.shape, places, box, generator)
    null = matcher(_patches(calm, elsewhere, box)).similarity.quantile(0.95).item()
    pasted, confidence = torch.zeros_like(image), torch.zeros_like(image)
    if not len(places):
        return Guides(pasted, confidence, places, torch.empty(0), null, 0.0)
    patches = _patches(calm, places, box)
    match = matcher(patches)
    sure = match.similarity > null
    amplitude = 0.0
    if sure.any():
        flat, seen = match.guess[sure], patches[sure]
        seen = seen - seen.mean((1, 2), keepdim=True)
        per_patch = (flat * seen).sum((1, 2)) / flat.square().sum((1, 2)).clamp_min(1e-12)
        amplitude = float(per_patch.median().clamp_min(0))
    near = torch.arange(box) - box // 2
    for number in sure.nonzero()[:, 0].tolist():
        y, x = (int(value) - box // 2 for value in places[number])
        inside = slice(y, y + box), slice(x, x + box)
        pasted[inside] += amplitude * match.guess[number]
        shift_y, shift_x = match.shifts[number].tolist()
        away = torch.hypot((near - shift_y)[:, None], near - shift_x)
        disc = torch.sigmoid((radius - away) / 1.5) * match.confidence[number]
        confidence[inside] = torch.maximum(confidence[inside], disc)
    width = _NUISANCE_ANGSTROM / matcher.bank.pixel_size_angstrom
    rest = scipy.ndimage.gaussian_filter((calm - pasted).numpy(), width)
    guess = pasted + torch.from_numpy(rest)
    return Guides(guess, confidence, places, match.similarity, null, amplitude)


def propose(
    image: Tensor, templates: Tensor, reach: int, box: int, generator: torch.Generator
) -> np.ndarray:
    """Places ``(n, 2)`` (y, x) where some of the targets correlate, the best first.

    Parameters
    ----------
    templates : Tensor
        ``(m, box // 2, box // 2)``, at twice the pixel size of `image`.
    reach : int
        Least distance of two places, in coarse pixels.
    """
    side, small = box // 2, coarsen(image[None])[0]
    shape = tuple(small.shape)
    chosen = torch.randperm(len(templates), generator=generator)[:_TRIED]
    spectrum = torch.fft.rfft2(small - small.mean())
    best = torch.full(shape, -torch.inf)
    for key in templates[chosen]:
        field = torch.zeros(shape)
        field[:side, :side] = key
        field = torch.roll(field, (-(side // 2), -(side // 2)), (0, 1))
        found = torch.fft.irfft2(spectrum * torch.fft.rfft2(field).conj(), s=shape)
        best = torch.maximum(best, found)
    values = best.numpy()
    middle = np.median(values)
    spread = 1.4826 * np.median(np.abs(values - middle))
    peaks = (values == scipy.ndimage.maximum_filter(values, size=2 * reach + 1)) & (
        values > middle + _THRESHOLD * spread
    )
    places = 2 * np.argwhere(peaks)
    inside = ((places >= box // 2) & (places <= np.array(image.shape) - box // 2)).all(1)
    order = np.argsort(-values[peaks][inside], kind="stable")[:_MOST]
    return places[inside][order]


@dataclass(frozen=True)
class Explained:
    """What a reference explains of a micrograph.

    Attributes
    ----------
    guess, confidence : Tensor
        ``(H, W)`` in units of the noise, and how sure it is in [0, 1]; both 0 elsewhere.
    places, evidence, rivals
        ``(n, 2)`` (y, x); ``(n,)`` logarithms of the likelihood ratio of the reference to noise,
        and of the best of its decoys to noise.
    margin : float
        By how many standard deviations of its decoys the reference explains more than they do, all
        places together.
    accepted : bool
        Whether that is enough; otherwise nothing is guessed.
    used : int
        Places that are guided.
    """

    guess: Tensor
    confidence: Tensor
    places: np.ndarray
    evidence: Tensor
    rivals: Tensor
    margin: float
    accepted: bool
    used: int = 0

    def __str__(self) -> str:
        told = f"{self.margin:.1f} standard deviations above its decoys"
        if not self.accepted:
            return f"the reference is {told}, too little: it was not used"
        return f"the reference, {told}, guides {self.used} places"


def explain(
    image: Tensor, reference: Reference, lens: Lens, generator: torch.Generator
) -> Explained:
    """Find places that a reference may explain, and weigh it against noise and its decoys.

    Parameters
    ----------
    image : Tensor
        ``(H, W)`` of `standardise`.
    lens : callable
        See `Reference.under`.
    """
    calm = image.clamp(-CLIP, CLIP)
    search = reference.under(calm, lens)
    reach = max(2, int(reference.radius / 2))
    half = reference.box // 2
    places = propose(search.white, search.templates, reach, reference.box, generator) - half
    guess, confidence = torch.zeros_like(search.white), torch.zeros_like(search.white)
    inner = slice(half, -half), slice(half, -half)
    if not len(places):
        none = torch.empty(0)
        return Explained(guess[inner], confidence[inner], places, none, none, 0.0, False)
    fields = search.fields(places)
    contrast = search.contrast(fields)
    evidence = search.evidence(fields, contrast)
    others = []
    for decoy in reference.decoys:
        other = decoy.under(calm, lens)
        seen = other.fields(places)
        others.append(other.evidence(seen, other.contrast(seen)))
    rivals = torch.stack(others)
    told = torch.cat([evidence[None], rivals]).clamp_min(0).sum(1)
    margin = float((told[0] - told[1:].mean()) / told[1:].std().clamp_min(1.0))
    rivals = rivals.amax(0)
    accepted, chosen = margin > _MARGIN, torch.empty(0)
    if accepted:
        sure = torch.sigmoid(evidence - torch.logaddexp(rivals, torch.zeros_like(rivals)))
        chosen = (sure > _UNSURE).nonzero()[:, 0]
        found = search.refine(places[chosen.numpy()], fields[chosen], contrast)
        for (y, x), one, disc, weight in zip(
            places[chosen.numpy()], found.guess, found.disc, sure[chosen], strict=True
        ):
            inside = slice(y, y + reference.box), slice(x, x + reference.box)
            guess[inside] += weight * one
            confidence[inside] = torch.maximum(confidence[inside], weight * disc)
    return Explained(
        guess[inner], confidence[inner], places, evidence, rivals, margin, accepted, len(chosen)
    )


def _elsewhere(
    shape: tuple[int, ...], places: np.ndarray, box: int, generator: torch.Generator
) -> np.ndarray:
    """Random places, those nearest to a candidate left out."""
    size = torch.tensor(shape) - box + 1
    drawn = torch.rand(4 * _NULL_PATCHES, 2, generator=generator) * size
    random = drawn.long().numpy() + box // 2
    if not len(places):
        return random[:_NULL_PATCHES]
    away = np.linalg.norm(random[:, None] - places[None], axis=2).min(1)
    return random[np.argsort(-away, kind="stable")[:_NULL_PATCHES]]


def _patches(image: Tensor, places: np.ndarray, box: int) -> Tensor:
    half = box // 2
    return torch.stack([image[y - half : y + half, x - half : x + half] for y, x in places])


def _blur(values: np.ndarray, width: float, coarse: int) -> np.ndarray:
    """Gaussian blur, made on an image `coarse` times smaller."""
    if coarse == 1:
        return scipy.ndimage.gaussian_filter(values, width)
    height, wide = values.shape
    padded = np.pad(values, ((0, -height % coarse), (0, -wide % coarse)), mode="edge")
    small = padded.reshape(padded.shape[0] // coarse, coarse, -1, coarse).mean((1, 3))
    small = scipy.ndimage.gaussian_filter(small, width / coarse)
    rows = (np.arange(height) + 0.5) / coarse - 0.5
    columns = (np.arange(wide) + 0.5) / coarse - 0.5
    grid = np.meshgrid(rows, columns, indexing="ij")
    return scipy.ndimage.map_coordinates(small, grid, order=1, mode="nearest").astype(np.float32)
