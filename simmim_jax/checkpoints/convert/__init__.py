"""Checkpoints of other libraries to ours and back."""
