"""Distillation in a training loop of plain PyTorch, on scikit-learn's handwritten digits."""
