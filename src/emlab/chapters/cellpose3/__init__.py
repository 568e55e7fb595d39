"""Chapter 05: restoration so that segmentation succeeds."""
