"""The training loop and the step it runs."""
