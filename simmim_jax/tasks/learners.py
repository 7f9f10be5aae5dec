"""What learns in a run of any mode, without data."""

from simmim_jax.config.schema import Pretrain, RunConfig, Segment, Transcribe
from simmim_jax.data.codecs.vocabulary import Vocabulary
from simmim_jax.data.sources.base import Source
from simmim_jax.tasks import classify, pretrain, segment, transcribe, values
from simmim_jax.tasks.segment import mask_classes
from simmim_jax.training.run import Learner

# Of ImageNet-1k.
NUM_EXAMPLES, NUM_CLASSES = 1_281_167, 1_000
# Of speech: tokens of a character, as of 12 characters a second.
_ALPHABET, _TOKENS = Vocabulary(" abcdefghijklmnopqrstuvwxyz'"), 4
# Of ADE20K.
NUM_MASK_CLASSES = 150


def learner(
    config: RunConfig,
    num_examples: int = NUM_EXAMPLES,
    num_classes: int = NUM_CLASSES,
) -> Learner:
    """Return what learns; raises UserError where `config` makes no sense.

    num_examples: of an epoch; num_classes: in fine-tuning and segmentation. What
    `config` leaves open of its values is assumed.
    """
    config = values.assume(config)
    if isinstance(config, Pretrain):
        return pretrain.learner(config, num_examples)
    if isinstance(config, Transcribe):
        tokens = config.data.image_size[1] // config.model.patch_size[1]
        longest = max(tokens // _TOKENS, 1)
        return transcribe.learner(config, num_examples, _ALPHABET, longest)[0]
    if isinstance(config, Segment):
        return segment.learner(config, num_examples, num_classes)[0]
    return classify.learner(config, num_examples, num_classes)[0]


def num_classes(config: RunConfig, source: Source) -> int:
    """Return the number of classes of images or, in segmentation, of pixels.

    Masks are not read for it: unless it is stated, it is ADE20K's, 150.
    """
    if isinstance(config, Segment):
        return config.data.num_classes or len(mask_classes(source)) or NUM_MASK_CLASSES
    return len(source.class_names)
