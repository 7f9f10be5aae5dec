"""From files to batches on the host: NumPy only, no JAX and no TensorFlow."""
