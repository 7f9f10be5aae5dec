"""Pack data sets into ArrayRecord shards of smaller images."""
