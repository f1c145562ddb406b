"""Regularisers of image denoising learned by certified hypergradients: smoothed total variation and fields of experts."""
