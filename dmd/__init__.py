"""Distribution Matching Distillation as a staged, reproducible data pipeline.

`stages` holds one module per pipeline step: each reads artifacts, calls maths and writes one artifact.
`methods` says what a generator learns from (the distribution matching gradient and the regression loss),
`diffusion` holds noise levels, denoisers and solvers, `networks` the architectures, `metrics` the distances
between sets of features, `artifacts` every file format, `config` and `checks` what a configuration says,
`experiments` who owns which artifact, `layout` where it lies.
Arrows point one way: stages -> methods -> diffusion, networks; stages -> metrics; stages -> artifacts.
"""
