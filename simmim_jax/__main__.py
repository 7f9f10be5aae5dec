"""`python -m simmim_jax <command>` is `simmim <command>`."""

from simmim_jax.cli.commands import main

if __name__ == "__main__":
    main()
