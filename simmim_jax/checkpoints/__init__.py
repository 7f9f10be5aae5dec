"""Checkpoints of a run, parameter transfer and other libraries' formats."""
