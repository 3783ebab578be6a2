"""Compares this tree with commit 29f82d6 (the earlier version), stage by stage: `python -m bench.earlier_version`."""
