"""A reader's own image: every method that fits, what the image says about itself, one report."""
