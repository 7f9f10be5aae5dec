"""The typed config: every field with its type, unit, allowed values and sentence."""
