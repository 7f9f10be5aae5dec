"""SimMIM itself: masks, targets, losses and the pre-training objective."""
