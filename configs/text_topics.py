"""The topic of a definition, seen as pixels: the comparison on a CPU.

    simmim train --config=text_topics

Pre-trains a ViT with 0.6M parameters on 64 characters of each of 64,000 definitions of
WordNet, with a quarter of them masked in spans, then fine-tunes it on 4,500 definitions
with their topic, one of 45, and the same model from scratch beside it. A tenth of the
definitions is held out; docs/measurements/accuracy.md has a result. The data has 6 MB
to download:

    apt-get download wordnet-base && dpkg-deb -x wordnet-base_*.deb packages
    python scripts/cut_wordnet.py packages/usr/share data/topics.csv

":smoke" takes seconds, on bundled lines of twenty languages.
"""

from ml_collections import ConfigDict

from simmim_jax.configs import text_languages


def get_config(arg: str = "") -> ConfigDict:
    """The comparison of text_languages, on more lines of one language."""
    config = text_languages.get_config(arg)
    if arg:
        return config
    for run in (config.pretrain, config.finetune):
        run.data.dataset = "data/topics.csv"
    config.finetune.data.num_labels = 4500
    config.finetune.duration = "1500 steps"
    config.finetune.optim.warmup = "150 steps"
    config.finetune.eval_every = "500 steps"
    return config
