"""Encoded bytes to arrays."""
