"""One module per pipeline step. Each has `run(*, paths, numbers)` and can be called as `python -m dmd.stages.NAME`."""
