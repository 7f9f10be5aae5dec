"""What a training step and its input cost, on devices here or elsewhere."""
