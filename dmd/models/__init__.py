"""Denoisers D(x; sigma, condition) -> x0: networks, preconditioning, guidance, adapters, and their files."""
