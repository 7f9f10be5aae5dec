"""Official PyTorch checkpoints to ours and back."""
