"""Augmentation on the device, in batches."""
