"""Mirrors the tree; a package, so that programs among the tests run by `python -m`."""
