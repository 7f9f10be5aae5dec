"""The Swin Transformer of SimMIM (official `SwinTransformerForSimMIM`)."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from simmim_jax.errors import UserError
from simmim_jax.models.attention import chosen, qkv_weights, self_attention
from simmim_jax.models.blocks import drop_path, drop_path_scales, run_blocks
from simmim_jax.models.layers import (
    Encoded,
    Initializer,
    Linear,
    Mlp,
    PatchEmbed,
    on_tpu,
    relative_offsets,
    replace_masked,
    truncated_normal,
)
from simmim_jax.models.pallas_attention import LANES, MAX_TOKENS
from simmim_jax.models.windows import (
    band_mask,
    band_places,
    bias_at,
    fit_window,
    fits_bands,
    from_windows,
    roll_grids,
    shift_mask,
    to_windows,
)


class WindowAttention(nn.Module):
    """Self-attention within windows, with a relative position bias table."""

    num_heads: int
    qkv_bias: bool
    kernel_init: Initializer
    implementation: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        window: int,
        mask: np.ndarray | None,
        places: np.ndarray | None = None,
    ) -> jax.Array:
        """Apply attention to x, float[b*w*n d], n = window²; mask: float[w n n].

        places: int[n], positions of the tokens in their windows, if x is in bands.
        """
        width = x.shape[-1]
        kernel, qkv_bias = qkv_weights(
            self,
            width,
            bias="qkv" if self.qkv_bias else "",
            kernel_init=self.kernel_init,
            query_scale=(width // self.num_heads) ** -0.5,
        )
        rows = (2 * window - 1) ** 2
        table = self.param(
            "relative_position_bias_table", self.kernel_init, (rows, self.num_heads)
        )
        bias = rearrange(
            table[relative_offsets(window, window)], "q k heads -> heads q k"
        )
        if places is not None:
            bias = bias_at(bias, places)
        x = self_attention(
            x,
            kernel,
            qkv_bias,
            bias,
            mask,
            batch=x.shape[0] // bias.shape[1],
            num_heads=self.num_heads,
            tokens=bias.shape[1],
            implementation=self.implementation,
            dtype=self.dtype,
        )
        return Linear(width, self.kernel_init, dtype=self.dtype, name="proj")(x)


class Block(nn.Module):
    """Window attention, optionally shifted, and an MLP.

    post_norm: normalise the output of a branch (Swin V2) instead of its input.
    pad_after_shift: see `to_windows`.
    """

    attention: Callable[..., nn.Module]
    window_size: int
    pad_after_shift: bool
    shifted: bool
    mlp_ratio: float
    norm_eps: float
    post_norm: bool
    max_band: int  # attend in bands of windows if they have at most so many tokens
    kernel_init: Initializer
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: jax.Array, grid: tuple[int, int], scales: jax.Array | None
    ) -> jax.Array:
        """Apply the block to x, float[b*h*w d].

        scales: float32[2 b], drop-path factors of the two branches of each sample.
        """
        height, width = grid
        window, shift = fit_window(
            grid, self.window_size, self.window_size // 2 if self.shifted else 0
        )

        def attend(x: jax.Array) -> jax.Array:
            attention = self.attention(name="attn")
            if fits_bands(grid, window, self.max_band):
                x = roll_grids(x, grid, shift)
                places = band_places(grid, window, shift)
                x = attention(x, window, band_mask(grid, window, shift), places)
                return roll_grids(x, grid, -shift)
            x = rearrange(x, "(b h w) d -> b h w d", h=height, w=width)
            x = to_windows(x, window, shift, self.pad_after_shift)
            x = attention(x, window, shift_mask(grid, window, shift))
            x = from_windows(x, grid, window, shift, self.pad_after_shift)
            return rearrange(x, "b h w d -> (b h w) d")

        mlp = Mlp(
            int(x.shape[-1] * self.mlp_ratio),
            kernel_init=self.kernel_init,
            out_init=self.kernel_init,
            dtype=self.dtype,
            name="mlp",
        )
        branches: tuple[Callable[[jax.Array], jax.Array], ...] = (attend, mlp)
        for i, branch in enumerate(branches):
            # The branches of Swin V2 start at zero.
            scale_init = (
                nn.initializers.zeros if self.post_norm else nn.initializers.ones
            )
            norm = nn.LayerNorm(
                self.norm_eps,
                dtype=x.dtype,
                scale_init=scale_init,
                name=f"norm{i + 1}",
            )
            y = norm(branch(x)) if self.post_norm else branch(norm(x))
            x = x + drop_path(y, None if scales is None else scales[i])
        return x


class PatchMerging(nn.Module):
    """Merge 2x2 tokens into one of twice the width; odd sides are zero-padded."""

    norm_eps: float
    post_norm: bool
    kernel_init: Initializer
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map float[b h w d] to float[b ⌈h/2⌉ ⌈w/2⌉ 2d]."""
        _, height, width, features = x.shape
        x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
        x = rearrange(x, "b (h p) (w q) d -> b h w (q p d)", p=2, q=2)
        norm = nn.LayerNorm(self.norm_eps, dtype=x.dtype, name="norm")
        reduction = Linear(
            2 * features, self.kernel_init, None, self.dtype, name="reduction"
        )
        return norm(reduction(x)) if self.post_norm else reduction(norm(x))


class Stage(nn.Module):
    """Blocks on one grid, and the patch merging to the next."""

    block: Callable[..., nn.Module]
    depth: int
    merging: Callable[..., nn.Module] | None
    remat: str
    scan_layers: bool

    @nn.compact
    def __call__(
        self, x: jax.Array, scales: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Map x, float[b h w d], to features of its shape and the next stage's input.

        scales: float32[depth 2 b], of `drop_path_scales`. Without patch merging both
        are the same.
        """
        _, height, width, _ = x.shape
        x = rearrange(x, "b h w d -> (b h w) d")
        x = run_blocks(
            [
                self.block(shifted=i % 2 == 1, name=f"blocks_{i}")
                for i in range(self.depth)
            ],
            x,
            (height, width),
            scales=scales,
            remat=self.remat,
            scan=self.scan_layers,
            period=2,
        )
        x = rearrange(x, "(b h w) d -> b h w d", h=height, w=width)
        return x, self.merging(name="downsample")(x) if self.merging else x


class Swin(nn.Module):
    """Swin Transformer with a mask token; any image size, any number of channels.

    A grid that does not divide into windows is padded, as in Swin's detection code. The
    defaults are the official pre-training Swin-B at 192 pixels.
    """

    patch_size: tuple[int, int] = (4, 4)
    embed_dim: int = 128  # of the first stage; doubles with each stage
    depths: tuple[int, ...] = (2, 2, 18, 2)
    num_heads: tuple[int, ...] = (4, 8, 16, 32)
    window_size: int = 6
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    patch_norm: bool = True
    pad_after_shift: bool = False  # as timm does
    use_abs_pos_emb: bool = False
    drop_path_rate: float = 0.0  # of the last block; increases linearly from 0
    norm_eps: float = 1e-5
    init_std: float = 0.02  # standard deviation of initial weights
    attention: str = "xla"  # implementation: one of attention.IMPLEMENTATIONS
    remat: str = "none"  # "none" or one of blocks.REMAT_POLICIES, to save memory
    scan_layers: bool = False  # run two blocks in a loop, to compile faster
    dtype: jnp.dtype = jnp.float32  # of operands of products; parameters are float32
    activation_dtype: jnp.dtype | None = None  # None: dtype

    post_norm: ClassVar[bool] = False

    def layer_id(self, path: tuple[str, ...]) -> int:
        """Return the layer of an encoder parameter, for layer-wise learning-rate decay.

        0 for patch embedding and mask token, then blocks counted across stages. Patch
        merging belongs to the block before it, the rest to the head (official
        `get_swin_layer`).
        """
        if path[0] in ("mask_token", "patch_embed"):
            return 0
        if not path[0].startswith("layers_"):
            return sum(self.depths) + 1
        stage = int(path[0].removeprefix("layers_"))
        if path[1] == "downsample":
            return sum(self.depths[: stage + 1])
        return sum(self.depths[:stage]) + int(path[1].removeprefix("blocks_")) + 1

    @property
    def stride(self) -> tuple[int, int]:
        """Height and width of a cell of the last grid [pixels]."""
        p, q = self.patch_size
        halvings = 2 ** (len(self.depths) - 1)
        return p * halvings, q * halvings

    def window_attention(
        self, stage: int, implementation: str
    ) -> Callable[..., nn.Module]:
        """Return a constructor of the attention of a stage's blocks."""
        return functools.partial(
            WindowAttention,
            num_heads=self.num_heads[stage],
            qkv_bias=self.qkv_bias,
            kernel_init=truncated_normal(self.init_std),
            implementation=implementation,
            dtype=self.dtype,
        )

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        mask: jax.Array | None = None,
        train: bool = False,
        stages: bool = False,
    ) -> Encoded:
        """Encode images: float[b h w c], normalised.

        mask: bool[b h/p w/q], True = masked. The mask token replaces masked patches
        after the norm of the patch embedding and before positions are added; all tokens
        pass through all blocks. `train` enables drop path (rng stream `drop_path`).
        stages: return the features of every stage as well, see `Encoded`. Raises
        UserError if sizes do not divide.
        """
        implementation = chosen(self)
        _check_stages(self.depths, self.num_heads, self.embed_dim)
        kernel_init = truncated_normal(self.init_std)
        x = PatchEmbed(
            self.patch_size,
            self.embed_dim,
            norm_eps=self.norm_eps if self.patch_norm else None,
            dtype=self.dtype,
            name="patch_embed",
        )(images.astype(self.activation_dtype or self.dtype))
        if mask is not None:
            mask_token = self.param("mask_token", kernel_init, (1, 1, self.embed_dim))
            x = replace_masked(x, mask, mask_token)
        if self.use_abs_pos_emb:
            height, width = x.shape[1:3]
            shape = (1, height * width, self.embed_dim)
            positions = self.param("absolute_pos_embed", kernel_init, shape)
            x += rearrange(positions, "b (h w) d -> b h w d", h=height).astype(x.dtype)

        scales = drop_path_scales(
            self, self.drop_path_rate, sum(self.depths), x.shape[0], train
        )
        shared: dict[str, Any] = {
            "norm_eps": self.norm_eps,
            "post_norm": self.post_norm,
            "kernel_init": kernel_init,
            "dtype": self.dtype,
        }
        merging: Callable[..., nn.Module] = functools.partial(PatchMerging, **shared)
        outputs = []
        for stage, depth in enumerate(self.depths):
            block = functools.partial(
                Block,
                attention=self.window_attention(stage, implementation),
                max_band=max_band(implementation),
                window_size=self.window_size,
                pad_after_shift=self.pad_after_shift,
                mlp_ratio=self.mlp_ratio,
                **shared,
            )
            before = sum(self.depths[:stage])
            features, x = Stage(
                block,
                depth,
                merging if stage + 1 < len(self.depths) else None,
                self.remat,
                self.scan_layers,
                name=f"layers_{stage}",
            )(x, None if scales is None else scales[before : before + depth])
            outputs.append(features)
        x = nn.LayerNorm(self.norm_eps, dtype=x.dtype, name="norm")(x)
        return Encoded(x, None, (*outputs[:-1], x) if stages else ())


def max_band(implementation: str) -> int:
    """Return the tokens of the largest bands that attention is fastest in; 0: none.

    By the TPU compiler's estimate logits of windows of 36 tokens take as long as those
    of bands of up to 128, which need no copies to cut.
    """
    if implementation == "pallas":
        return MAX_TOKENS
    return LANES if on_tpu() else 0


def _check_stages(
    depths: tuple[int, ...], num_heads: tuple[int, ...], embed_dim: int
) -> None:
    if len(depths) != len(num_heads):
        raise UserError(
            f"config.model.depths={depths} and config.model.num_heads={num_heads}: "
            "expected one value per stage in both."
        )
    for stage, heads in enumerate(num_heads):
        width = embed_dim * 2**stage
        if width % heads:
            raise UserError(
                f"stage {stage} has width {width}, not a multiple of its "
                f"num_heads={heads}. Change config.model.embed_dim or "
                "config.model.num_heads."
            )
