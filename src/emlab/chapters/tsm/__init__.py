"""Chapter 02: score-based denoising of cryo-EM micrographs."""
