"""Compares this tree with commit 29f82d6, "the first house", stage by stage: `python -m bench.first_house`."""
