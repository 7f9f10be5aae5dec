"""Metrics, progress, profiles and pictures of a run."""
