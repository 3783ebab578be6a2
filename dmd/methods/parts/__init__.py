"""Building blocks of several methods: losses, distances, noise levels."""
