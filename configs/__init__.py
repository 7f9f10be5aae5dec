"""One file is one run; `common` and `models` hold what they share.

Installed as simmim_jax.configs; `simmim configs` lists them.
"""
