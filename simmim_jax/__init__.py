"""SimMIM, masked image modelling, in JAX/Flax."""
