"""Benchmarks: stages against their parts, on GPUs, at scale, and against an earlier commit."""
