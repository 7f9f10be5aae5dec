"""Encoders, the pixel decoder and the classifier, as Flax Linen modules."""
