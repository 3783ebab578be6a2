"""Metrics of samples: distances and tests on features, and feature networks."""
