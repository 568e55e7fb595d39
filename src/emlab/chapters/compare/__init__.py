"""Chapter 06: the five methods side by side."""
