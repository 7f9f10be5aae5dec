"""Where examples are: one module per storage format, and their registry."""
