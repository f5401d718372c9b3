"""Configs and checkpoints."""
