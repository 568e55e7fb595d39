"""Command groups of the command line, one module each, mounted by `emlab.app.cli`."""
