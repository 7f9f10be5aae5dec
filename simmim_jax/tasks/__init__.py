"""Pre-training, classification and what builds on both."""
