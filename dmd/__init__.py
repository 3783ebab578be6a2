"""Distribution Matching Distillation as a staged, reproducible data pipeline.

`stages` holds one module per pipeline step: each reads artifacts, calls maths and writes one artifact.
`methods` says what a generator learns from (the distribution matching gradient and the regression loss),
`diffusion` holds noise levels, denoisers and solvers, `networks` the architectures, `metrics` the distances
between sets of features, `artifacts` every file format, `config` the experiments and who owns which artifact.
Arrows point one way: stages -> methods -> diffusion, networks; stages -> metrics; stages -> artifacts.
"""
