"""What several methods are made of: losses, distances, noise levels."""
