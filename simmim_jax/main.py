"""`python -m simmim_jax.main` is `simmim train`."""

from simmim_jax.cli.train import main

if __name__ == "__main__":
    main()
