"""Run the chapters, stage the book with what they measured, build it: ``python -m tools.book``."""
