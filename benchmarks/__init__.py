"""Recorded measurements: accuracy, cost, quality of denoised features, and the tables of the docs that are made of them."""
