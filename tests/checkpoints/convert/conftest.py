"""torchvision beside a CPU build of PyTorch, for timm and transformers."""

import contextlib

with contextlib.suppress(ImportError):
    import torch

    # torchvision's wheels are built for CUDA. Their compiled operators do not load
    # beside a CPU build of PyTorch, and importing torchvision fails where it describes
    # two of them. Declared, they are missing only when called, which nothing here does.
    if torch.version.cuda is None:
        LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            LIBRARY.define(
                f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor"
            )
