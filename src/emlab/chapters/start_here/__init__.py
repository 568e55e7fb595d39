"""Chapter 00: a prior, an instrument and a solver whose answers are known exactly."""
