"""What things cost here: every row a ratio of two times taken in turn within one run."""
