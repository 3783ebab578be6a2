"""What a generator learns from: the distribution matching gradient, regression on pairs, and their schedule."""
