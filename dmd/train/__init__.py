"""Trains any method: networks, data, updates, sums over processes, checkpoints. Nothing here depends on a method."""
