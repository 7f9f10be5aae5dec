"""SimMIM itself: masks, targets, losses and the objective they form."""
