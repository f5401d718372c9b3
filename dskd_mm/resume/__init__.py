"""Resuming a killed run as if it had not been killed: random numbers, places in the data, whole checkpoints."""

from dskd_mm.resume.hook import ResumeHook

__all__ = ['ResumeHook']
