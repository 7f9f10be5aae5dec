"""Any data set to ArrayRecord shards of smaller images."""
