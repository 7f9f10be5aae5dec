"""The Vision Transformer of SimMIM (BEiT's blocks; official `VisionTransformer`)."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from simmim_jax.errors import UserError
from simmim_jax.models.attention import (
    chosen,
    mean_weights,
    qkv_weights,
    self_attention,
)
from simmim_jax.models.blocks import drop_path, drop_path_scales, run_blocks
from simmim_jax.models.layers import (
    Encoded,
    Initializer,
    Linear,
    Mlp,
    PatchEmbed,
    gelu,
    relative_offsets,
    replace_masked,
    scaled,
    truncated_normal,
)
from simmim_jax.models.pallas_attention import padding


def relative_position_index(height: int, width: int) -> np.ndarray:
    """Return the row of the bias table for every (query, key).

    returns: int[1+h*w 1+h*w], the class token first. Rows of the table: (2h-1)(2w-1)
    offsets between patches, then class-to-patch, patch-to-class and class-to-class
    (BEiT; official `RelativePositionBias`).
    """
    offsets = (2 * height - 1) * (2 * width - 1)
    index = np.empty((1 + height * width,) * 2, np.int32)
    index[1:, 1:] = relative_offsets(height, width)
    index[0, :], index[:, 0], index[0, 0] = offsets, offsets + 1, offsets + 2
    return index


def relative_position_bias(
    module: nn.Module, num_heads: int, grid: tuple[int, int]
) -> jax.Array:
    """Return a bias for every head and offset between tokens, learned by `module`.

    returns: float32[heads n n] for n = 1+h*w tokens, initially zero.
    """
    height, width = grid
    table = module.param(
        "relative_position_bias_table",
        nn.initializers.zeros,
        ((2 * height - 1) * (2 * width - 1) + 3, num_heads),
    )
    index = relative_position_index(height, width)
    return rearrange(table[index], "q k heads -> heads q k")


def sincos_positions(height: int, width: int, dim: int) -> np.ndarray:
    """Return fixed positions of a grid, float32[h*w dim] (MAE's `pos_embed.py`).

    The first half of the features has the column, the second half the row: sines, then
    cosines, of wavelengths from 2π to 10,000 · 2π. A wider grid continues a narrow one.
    raises: UserError where dim is not a multiple of four.
    """
    if dim % 4:
        raise UserError(
            f"config.model.embed_dim={dim} must be a multiple of 4 with "
            "config.model.use_sincos_pos_emb=True."
        )
    frequencies = 10_000.0 ** -(np.arange(dim // 4) / (dim // 4))
    row, column = np.divmod(np.arange(height * width), width)
    angles = [place[:, None] * frequencies for place in (column, row)]
    waves = [wave(angle) for angle in angles for wave in (np.sin, np.cos)]
    return np.concatenate(waves, axis=1).astype(np.float32)


class ConvPositions(nn.Module):
    """Depthwise convolution of the tokens, then GELU: neighbours tell the position.

    After the conditional positional encodings of CPVT (Chu et al. 2021), which come
    after the first block and have no GELU. For grids of any width, and any height but
    1 where they were learned with 1.
    """

    width: int  # odd

    @nn.compact
    def __call__(self, tokens: jax.Array, valid: jax.Array | None) -> jax.Array:
        """Return what is added to tokens, float[b h w d].

        valid: bool[b h w], False = padding, which counts as zeros; None: all are valid.
        raises: UserError for an even width, which has no middle.
        """
        if self.width % 2 == 0:
            raise UserError(
                f"config.model.conv_pos_width={self.width}: expected an odd number, or "
                "0 for none."
            )
        _, height, width, dim = tokens.shape
        rows = 1 if height == 1 else self.width
        init = nn.initializers.normal((rows * self.width) ** -0.5)
        kernel = self.param("kernel", init, (rows, self.width, dim))
        if valid is not None:
            tokens = jnp.where(valid[..., None], tokens, 0)
        above, before = rows // 2, self.width // 2
        margins = [(0, 0), (above, above), (before, before), (0, 0)]
        padded = jnp.pad(tokens.astype(jnp.float32), margins)
        # XLA has no fast depthwise convolution for CPUs.
        mixed = sum(
            padded[:, y : y + height, x : x + width] * kernel[y, x]
            for y in range(rows)
            for x in range(self.width)
        )
        return gelu(mixed).astype(tokens.dtype)


class SharedRelativePositionBias(nn.Module):
    """Bias table shared by all blocks."""

    num_heads: int

    @nn.compact
    def __call__(self, grid: tuple[int, int]) -> jax.Array:
        """Return the bias, as `relative_position_bias`."""
        return relative_position_bias(self, self.num_heads, grid)


class Attention(nn.Module):
    """Self-attention without a key bias, the query scale folded into the weights."""

    num_heads: int
    qkv_bias: bool
    rel_pos_bias: bool
    kernel_init: Initializer
    out_init: Initializer
    implementation: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        bias: jax.Array | None,
        mask: jax.Array | None,
        scale: jax.Array | None,
        batch: int,
        grid: tuple[int, int],
    ) -> jax.Array:
        """Apply attention to x, float[b*rows d].

        bias: float[heads n n]; mask: float[b 1 n], added to the logits of each sample;
        scale: float[d], LayerScale. The rows of a sample are the class token, the
        tokens of its grid and any padding. Where the collection "intermediates" is
        mutable it gets the weights, "attention", as `mean_weights`; without padding.
        """
        width = x.shape[-1]
        kernel, qkv_bias = qkv_weights(
            self,
            width,
            bias="qv" if self.qkv_bias else "",
            kernel_init=self.kernel_init,
            query_scale=(width // self.num_heads) ** -0.5,
        )
        if self.rel_pos_bias:
            own = relative_position_bias(self, self.num_heads, grid)
            bias = own if bias is None else bias + own
        if self.is_mutable_collection("intermediates"):
            weights = mean_weights(
                x, kernel, qkv_bias, bias, mask, batch=batch, num_heads=self.num_heads
            )
            self.sow("intermediates", "attention", weights)
        x = self_attention(
            x,
            kernel,
            qkv_bias,
            bias,
            mask,
            batch=batch,
            num_heads=self.num_heads,
            tokens=1 + grid[0] * grid[1],
            implementation=self.implementation,
            dtype=self.dtype,
        )
        return Linear(width, self.out_init, dtype=self.dtype, name="proj")(x, scale)


class Block(nn.Module):
    """x += drop_path(γ₁·attention(norm(x))); x += drop_path(γ₂·mlp(norm(x)))."""

    num_heads: int
    mlp_ratio: float
    qkv_bias: bool
    rel_pos_bias: bool
    layer_scale: float
    norm_eps: float
    kernel_init: Initializer
    out_init: Initializer
    attention: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        batch: int,
        grid: tuple[int, int],
        bias: jax.Array | None,
        mask: jax.Array | None,
        scales: jax.Array | None,
    ) -> jax.Array:
        """Apply the block to x, float[b*rows d].

        bias: float[heads n n], shared by all blocks; mask: as `Attention`;
        scales: float32[2 b], drop-path factors of the two branches of each sample.
        """
        width = x.shape[-1]

        def gamma(name: str) -> jax.Array | None:
            if not self.layer_scale:
                return None
            init = nn.initializers.constant(self.layer_scale)
            return self.param(name, init, (width,))

        def norm(name: str) -> nn.LayerNorm:
            return nn.LayerNorm(self.norm_eps, dtype=x.dtype, name=name)

        attend = Attention(
            num_heads=self.num_heads,
            qkv_bias=self.qkv_bias,
            rel_pos_bias=self.rel_pos_bias,
            kernel_init=self.kernel_init,
            out_init=self.out_init,
            implementation=self.attention,
            dtype=self.dtype,
            name="attn",
        )
        mlp = Mlp(
            int(width * self.mlp_ratio),
            kernel_init=self.kernel_init,
            out_init=self.out_init,
            dtype=self.dtype,
            name="mlp",
        )
        attention_scale, mlp_scale = (None, None) if scales is None else scales
        branch = attend(norm("norm1")(x), bias, mask, gamma("gamma_1"), batch, grid)
        x = x + drop_path(branch, attention_scale)
        branch = mlp(norm("norm2")(x), gamma("gamma_2"))
        return x + drop_path(branch, mlp_scale)


class ViT(nn.Module):
    """Vision Transformer with a mask token; any image size, any number of channels.

    The defaults are the official pre-training ViT-B/16. The official classifier has one
    bias table per block (`use_rel_pos_bias`), no final norm with mean pooling, and
    initial weights that are not truncated.
    """

    patch_size: tuple[int, int] = (16, 16)
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    use_abs_pos_emb: bool = False
    use_sincos_pos_emb: bool = False  # fixed, for grids of any size
    conv_pos_width: int = 0  # of a convolution that adds positions; 0: none
    use_rel_pos_bias: bool = False  # one table per block
    use_shared_rel_pos_bias: bool = True  # one table for all blocks
    layer_scale: float = 0.1  # initial value; 0 disables LayerScale
    drop_path_rate: float = 0.0  # of the last block; increases linearly from 0
    final_norm: bool = True
    norm_eps: float = 1e-6
    init_std: float = 0.02  # of initial weights; the official value for width 768
    init_cut: float = 1.0  # truncation of initial weights [init_std]; 0: none
    attention: str = "xla"  # implementation: one of attention.IMPLEMENTATIONS
    remat: str = "none"  # "none" or one of blocks.REMAT_POLICIES, to save memory
    scan_layers: bool = False  # run one block in a loop, to compile faster
    dtype: jnp.dtype = jnp.float32  # of operands of products; parameters are float32
    activation_dtype: jnp.dtype | None = None  # None: dtype

    @property
    def stride(self) -> tuple[int, int]:
        """Height and width of a cell of the grid [pixels]."""
        return self.patch_size

    def layer_id(self, path: tuple[str, ...]) -> int:
        """Return the layer of an encoder parameter, for layer-wise learning-rate decay.

        0 for embeddings, i+1 for block i, depth+1 for the rest, which shares the head's
        rate (official `get_vit_layer`).
        """
        if path[0] in (
            "cls_token",
            "pos_embed",
            "conv_pos",
            "mask_token",
            "patch_embed",
        ):
            return 0
        if path[0].startswith("blocks_"):
            return int(path[0].removeprefix("blocks_")) + 1
        return self.depth + 1

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        mask: jax.Array | None = None,
        train: bool = False,
        valid: jax.Array | None = None,
        stages: bool = False,
    ) -> Encoded:
        """Encode images: float[b h w c], normalised.

        mask: bool[b h/p w/q], True = masked. The mask token replaces masked patches
        after the patch embedding and before positions are added; all tokens pass
        through all blocks. `train` enables drop path (rng stream `drop_path`).
        valid: bool[b h/p w/q], False = padding, which no token attends to; None: all
        are valid. stages: return the features after each quarter of the blocks as
        well, see `Encoded`. Raises UserError if sizes do not divide.
        """
        if self.embed_dim % self.num_heads:
            raise UserError(
                f"config.model.embed_dim={self.embed_dim} must be a multiple of "
                f"config.model.num_heads={self.num_heads}."
            )
        implementation = chosen(self)
        kernel_init = truncated_normal(self.init_std, self.init_cut)
        patches = PatchEmbed(
            self.patch_size,
            self.embed_dim,
            kernel_init,
            dtype=self.dtype,
            name="patch_embed",
        )(images.astype(self.activation_dtype or self.dtype))
        batch, height, width, _ = patches.shape
        token_shape = (1, 1, self.embed_dim)
        if mask is not None:
            mask_token = self.param("mask_token", kernel_init, token_shape)
            patches = replace_masked(patches, mask, mask_token)
        if self.conv_pos_width:
            patches += ConvPositions(self.conv_pos_width, name="conv_pos")(
                patches, valid
            )
        tokens = rearrange(patches, "b h w d -> b (h w) d")
        cls_token = self.param("cls_token", kernel_init, token_shape)
        cls_token = jnp.broadcast_to(
            cls_token.astype(tokens.dtype), (batch, 1, self.embed_dim)
        )
        tokens = jnp.concatenate([cls_token, tokens], axis=1)
        if self.use_abs_pos_emb:
            pos_shape = (1, tokens.shape[1], self.embed_dim)
            pos_embed = self.param("pos_embed", kernel_init, pos_shape)
            tokens += pos_embed.astype(tokens.dtype)
        if self.use_sincos_pos_emb:
            fixed = sincos_positions(height, width, self.embed_dim)
            tokens = tokens.at[:, 1:].add(fixed.astype(tokens.dtype))
        padding_mask = None
        if valid is not None:
            valid = jnp.pad(
                rearrange(valid, "b h w -> b 1 (h w)"),
                [(0, 0), (0, 0), (1, 0)],
                constant_values=True,
            )
            padding_mask = jnp.where(valid, 0.0, -jnp.inf)
        if implementation == "pallas":
            # Pad once for all blocks.
            tokens = jnp.pad(tokens, ((0, 0), (0, padding(tokens.shape[1])), (0, 0)))

        bias = None
        if self.use_shared_rel_pos_bias:
            shared = SharedRelativePositionBias(self.num_heads, name="rel_pos_bias")
            bias = shared((height, width))
        x = rearrange(tokens, "b n d -> (b n) d")
        blocks = [
            Block(
                num_heads=self.num_heads,
                mlp_ratio=self.mlp_ratio,
                qkv_bias=self.qkv_bias,
                rel_pos_bias=self.use_rel_pos_bias,
                layer_scale=self.layer_scale,
                norm_eps=self.norm_eps,
                kernel_init=kernel_init,
                # Keeps the residual stream's variance constant with depth (BEiT).
                out_init=scaled(kernel_init, (2 * (i + 1)) ** -0.5),
                attention=implementation,
                dtype=self.dtype,
                name=f"blocks_{i}",
            )
            for i in range(self.depth)
        ]
        scales = drop_path_scales(self, self.drop_path_rate, self.depth, batch, train)
        outputs = []
        for part in quarters(self.depth) if stages else [slice(0, self.depth)]:
            x = run_blocks(
                blocks[part],
                x,
                batch,
                (height, width),
                bias,
                padding_mask,
                scales=None if scales is None else scales[part],
                remat=self.remat,
                scan=self.scan_layers,
            )
            outputs.append(x)
        if self.final_norm:
            x = nn.LayerNorm(self.norm_eps, dtype=x.dtype, name="norm")(x)

        def on_grid(x: jax.Array) -> jax.Array:
            tokens = rearrange(x, "(b n) d -> b n d", b=batch)
            patches = tokens[:, 1 : 1 + height * width]
            return rearrange(patches, "b (h w) d -> b h w d", h=height)

        grid = on_grid(x)
        cls = rearrange(x, "(b n) d -> b n d", b=batch)[:, 0]
        return Encoded(grid, cls, (*map(on_grid, outputs[:-1]), grid) if stages else ())


def quarters(depth: int) -> list[slice]:
    """Return four equal parts of a ViT's blocks, or as equal as can be."""
    ends = [-(-depth * part // 4) for part in range(5)]
    return [slice(*pair) for pair in itertools.pairwise(ends)]
