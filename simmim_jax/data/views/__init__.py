"""Arrays to what a batch holds."""
