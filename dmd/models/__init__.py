"""A denoiser D(x; sigma, condition) -> x0: networks, how they are wrapped, guided and adapted, and their files."""
