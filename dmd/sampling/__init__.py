"""Images from noise: noise levels, solvers, and samplers that a user calls."""
