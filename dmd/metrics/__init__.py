"""How good samples are: distances and tests over features, and the networks that make features."""
