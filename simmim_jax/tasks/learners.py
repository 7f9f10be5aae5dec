"""What learns in a run of either mode, without data."""

from simmim_jax.config.schema import Finetune, Pretrain
from simmim_jax.tasks import classify, pretrain, values
from simmim_jax.training.run import Learner

# Of ImageNet-1k.
NUM_EXAMPLES, NUM_CLASSES = 1_281_167, 1_000


def learner(
    config: Pretrain | Finetune,
    num_examples: int = NUM_EXAMPLES,
    num_classes: int = NUM_CLASSES,
) -> Learner:
    """Return what learns; raises UserError where `config` makes no sense.

    num_examples: of an epoch; num_classes: in fine-tuning. What `config` leaves open
    of its values is assumed.
    """
    config = values.assume(config)
    if isinstance(config, Pretrain):
        return pretrain.learner(config, num_examples)
    return classify.learner(config, num_examples, num_classes)[0]
