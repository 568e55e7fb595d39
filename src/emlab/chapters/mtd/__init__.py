"""Chapter 04: an image recovered from a noisy field of its rotated copies."""
