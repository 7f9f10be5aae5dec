"""`python -m simmim_jax.convert` is `simmim convert`."""

from simmim_jax.cli.convert import main

if __name__ == "__main__":
    main()
