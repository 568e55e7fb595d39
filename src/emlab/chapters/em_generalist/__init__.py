"""Chapter 01: EM Generalist, one prior of tissue for every restoration task."""
