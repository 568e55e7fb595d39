"""Chapter 03: the phase of a single particle image, with a flow prior."""
