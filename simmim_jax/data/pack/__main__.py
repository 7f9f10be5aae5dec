"""`python -m simmim_jax.data.pack` is `simmim pack`."""

from simmim_jax.cli.pack import main

if __name__ == "__main__":
    main()
