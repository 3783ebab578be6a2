"""Training of any method: networks, data, updates, sums over processes, checkpoints. It knows no method."""
