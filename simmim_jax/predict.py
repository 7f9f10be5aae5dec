"""`python -m simmim_jax.predict` is `simmim predict`."""

from simmim_jax.cli.predict import main

if __name__ == "__main__":
    main()
