"""From image files to uint8 batches, on the host, without TensorFlow."""
