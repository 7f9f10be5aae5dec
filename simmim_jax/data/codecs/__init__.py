"""Encoded bytes to arrays: one module per codec, and their registry."""
