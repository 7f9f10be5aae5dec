"""`python -m simmim_jax.aot` is `simmim aot`."""

from simmim_jax.cli.aot import main

if __name__ == "__main__":
    main()
