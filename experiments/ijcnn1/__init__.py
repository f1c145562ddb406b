"""One penalty for each of 22 features: stochastic single loops beside full-batch hypergradients and random search."""
