"""Conversion of checkpoints from and to other libraries."""
