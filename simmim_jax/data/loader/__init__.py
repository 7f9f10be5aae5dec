"""Batches: their order, and the threads and processes that fill them."""
