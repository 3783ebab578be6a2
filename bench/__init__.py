"""The stages against their parts: ratios measured in one run, on one thread."""
