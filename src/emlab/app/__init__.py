"""What a user runs: the command line, the runner of chapters, own images, volumes in blocks."""
