"""The `simmim` command: looks a sub-command up and hands it the arguments."""

import importlib
import os
import sys
from collections.abc import Sequence

from simmim_jax.errors import UserError, did_you_mean

# Name: module in cli with main(argv), and what the command is for.
COMMANDS = {
    "train": ("train", "pre-train, fine-tune, segment, transcribe or compare"),
    "inspect": ("inspect", "what a data set has, before training on it"),
    "stats": ("stats", "mean, range and percentiles of a data set, per band"),
    "predict": ("predict", "classify or segment images, or transcribe sounds"),
    "evaluate": ("evaluate", "accuracy by class, confusions and calibration"),
    "embed": ("embed", "a vector of features for every image of a data set"),
    "probe": ("probe", "what an encoder's features are worth: kNN and linear"),
    "neighbours": ("neighbours", "images that look alike, near-duplicates"),
    "look": ("look", "pictures of features: patches, and a map of a data set"),
    "export": ("export", "a model as ONNX, StableHLO or safetensors"),
    "convert": ("convert", "checkpoints of other libraries to ours and back"),
    "pack": ("pack", "copy a data set into shards of smaller images"),
    "bench": ("bench", "measure the training step or the input of a config"),
    "aot": ("aot", "compile for a TPU slice that is elsewhere: does it fit?"),
    "configs": ("configs", "list the configs that come with the package"),
    "fields": ("fields", "explain the fields of a config"),
    "doctor": ("doctor", "print versions and devices, and train a few steps"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run `simmim <command> <arguments>`; without a command print the list."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview())
        return
    name, *rest = argv
    if name not in COMMANDS:
        meant = did_you_mean(name, COMMANDS)
        sys.exit(f"unknown command {name!r}: expected {', '.join(COMMANDS)}.{meant}")
    module = importlib.import_module(f"simmim_jax.cli.{COMMANDS[name][0]}")
    try:
        module.main(rest)
    except UserError as error:
        sys.exit(str(error))
    except BrokenPipeError:  # as in `simmim fields | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _overview() -> str:
    lines = (f"  {name:<10} {purpose}" for name, (_, purpose) in COMMANDS.items())
    return "\n".join(
        [
            "usage: simmim <command> [arguments]\n",
            "SimMIM, masked image modelling, in JAX.\n",
            *lines,
            "\n`simmim <command> --help` shows an example. To begin with:\n",
            "  simmim train --config=quickstart",
        ]
    )
