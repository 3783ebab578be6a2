"""Images from noise: noise levels, solvers, samplers."""
