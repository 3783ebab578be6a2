"""The maths of diffusion, tensors in and out: noise levels, denoisers, the denoising loss, solvers."""
