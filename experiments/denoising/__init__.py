"""Regularisers of denoising learned by certified hypergradients: smoothed total variation and fields of experts."""
