"""A trained encoder with everything that it needs to turn images into features."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from simmim_jax.checkpoints import store
from simmim_jax.config import schema
from simmim_jax.config.schema import RunConfig
from simmim_jax.data.codecs.base import BadImage
from simmim_jax.data.sources.base import NO_LABEL, Source, SubsetSource
from simmim_jax.data.views.base import View
from simmim_jax.errors import UserError
from simmim_jax.models import Encoded, build_simmim, plain
from simmim_jax.models.vit import ViT
from simmim_jax.tasks import examples, precision, values
from simmim_jax.tasks.views import check_several, content, unmasked_view

if TYPE_CHECKING:
    from simmim_jax.tasks.reconstruct import Reconstruction

POOLS = ("mean", "cls")


class Embedded(NamedTuple):
    """Features of some examples of a source.

    indices: int [n], in order; paths: "" where a source has none; labels: int32 [n], -1
    for none; vectors: float32 [n, d]; bad: (index, path, error) of what is no image.
    """

    indices: np.ndarray
    paths: list[str]
    labels: np.ndarray
    vectors: np.ndarray
    bad: list[tuple[int, str, UserError | OSError]]


@dataclasses.dataclass(frozen=True, repr=False)
class Encoder:
    """An encoder, its parameters, and how its images are prepared.

    pool: "mean" averages the patches, "cls" takes the class token of a ViT; head_norm:
    parameters of the norm that a classifier applies to what was pooled, or None;
    decoder: those of the pixel decoder of a pre-training run, {} without one.
    """

    module: nn.Module
    params: Any
    head_norm: Any
    config: RunConfig  # of its training run
    pool: str
    step: int
    decoder: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def load(
        cls, path: str | Path, *, pool: str = "mean", block: int | None = None
    ) -> "Encoder":
        """Load the workdir of a run (its best checkpoint) or a checkpoint; see `of`."""
        params, meta = store.load(path)
        params = jax.tree.map(jnp.asarray, params)  # onto the device, once
        config = schema.single(schema.parse(meta["config"], stored=True))
        return cls.of(params, config, meta["step"], pool=pool, block=block)

    @classmethod
    def of(
        cls,
        params: Any,
        config: RunConfig,
        step: int,
        *,
        pool: str = "mean",
        block: int | None = None,
    ) -> "Encoder":
        """Return the encoder of a model.

        params: of a whole model; block: of a ViT, take the features after this block,
        counted from 1 and without the final norm; None: the encoder's output.
        raises: UserError where the encoder has no such block, or no class token.
        """
        fields = schema.encoder_fields(config.model)
        # Devices other than CPUs compute in the run's type.
        on_cpu = jax.default_backend() == "cpu"
        dtype = "float32" if on_cpu else precision.of_machine(config.dtype)
        model = plain(build_simmim(dtype=dtype, **fields))
        module, head_norm = model.encoder, params.get("fc_norm")
        if pool not in POOLS or (pool == "cls" and not isinstance(module, ViT)):
            raise UserError(
                f"pool={pool!r}: expected 'mean'"
                + (" or 'cls'." if isinstance(module, ViT) else ", of a Swin.")
            )
        if block is not None:
            if not isinstance(module, ViT) or not 1 <= block <= module.depth:
                has = f"1 to {module.depth}" if isinstance(module, ViT) else "none"
                raise UserError(
                    f"block={block}: expected a block of a ViT; this encoder has {has}."
                )
            module = module.clone(depth=block, final_norm=False)
            head_norm = None
        decoder = {n: p for n, p in params.items() if n.startswith("decoder")}
        return cls(module, params["encoder"], head_norm, config, pool, step, decoder)

    @property
    def dim(self) -> int:
        """Number of features of a vector."""
        height, width = self.config.data.image_size
        image = jnp.zeros((1, height, width, self.config.data.channels))
        apply = functools.partial(self.module.apply, {"params": self.params})
        return jax.eval_shape(apply, image).grid.shape[-1]

    def __repr__(self) -> str:
        return f"<Encoder: {self.describe()}>"

    def describe(self) -> str:
        """Return architecture and step of the checkpoint in a line."""
        height, width = self.config.data.image_size
        size = sum(np.size(p) for p in jax.tree.leaves(self.params))
        return (
            f"{self.config.model.name}, {size:,} parameters, step {self.step}, images "
            f"of {height}x{width}, {self.dim} features"
        )

    def embed(self, images: Sequence[Any] | np.ndarray) -> np.ndarray:
        """Return a vector for each image, float32 [n, d].

        images: paths, encoded images or arrays [h, w, c] of any size, or an array
        [n, h, w, c]; with config.data.view="text", lines.
        raises: UserError or OSError for what is not an image.
        """
        if not len(images):
            return np.zeros((0, self.dim), np.float32)
        size = self._batch_size
        parts = [
            self._vectors(images[i : i + size]) for i in range(0, len(images), size)
        ]
        return np.concatenate(parts)

    def features(
        self, images: Sequence[Any] | np.ndarray, *, prepared: bool = False
    ) -> np.ndarray:
        """Return the last map of features of each image, float32 [n, h, w, d].

        images: as in `embed`, as many as fit into memory at once; prepared: they are
        what `prepare` or `read` returned.
        """
        pixels = np.asarray(images) if prepared else self.prepare(images)
        return np.asarray(self._encode(self.params, pixels).grid, np.float32)

    def attention(
        self, images: Sequence[Any] | np.ndarray, *, prepared: bool = False
    ) -> np.ndarray:
        """Return what the last block of a ViT attends to, float32 [n, h, w].

        It is the mean over heads, and over the tokens that vectors are made of: all
        patches, or with pool="cls" the class token. A map sums to 1 less what goes to
        the class token. images, prepared: as in `features`.
        raises: UserError for a Swin, which attends within windows.
        """
        if not isinstance(self.module, ViT):
            raise UserError(
                "a Swin attends within windows, of which no map of an image follows: "
                "expected a ViT."
            )
        pixels = np.asarray(images) if prepared else self.prepare(images)
        return np.asarray(self._attend(self.params, pixels))

    def stages(self, images: Sequence[Any] | np.ndarray) -> list[np.ndarray]:
        """Return the maps of every stage, float32 [n, h, w, d] each, finest first.

        Of a Swin its stages, of a ViT the output of each quarter of its blocks; see
        `Encoded`. images: as in `features`.
        """
        encoded = self._encode_stages(self.params, self.prepare(images))
        return [np.asarray(stage, np.float32) for stage in encoded.stages]

    def reconstruct(
        self, images: Sequence[Any] | np.ndarray, *, seed: int = 0
    ) -> "Reconstruction":
        """Hide parts of images and predict them; see `reconstruct.Reconstruction`.

        images: as in `embed`; seed: of what is hidden.
        raises: UserError if the run is not one of pre-training.
        """
        # It builds on pre-training, which may measure features with an encoder.
        from simmim_jax.tasks import reconstruct

        return reconstruct.reconstruct(self, images, seed=seed)

    def prepare(self, images: Sequence[Any] | np.ndarray) -> np.ndarray:
        """Return images as the encoder sees them before they are normalised, [n h w c].

        images: as in `embed`.
        """
        check_several(self.config.data, images)
        return np.stack([self._prepare(image) for image in images])

    def read(self, source: Source, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return examples of a source like `prepare`, without those that are bad.

        raises: UserError if all are.
        """
        chosen = SubsetSource(source, np.asarray(indices))
        (found,) = examples.read(chosen, range(len(chosen)), self._view, len(chosen))
        if not len(found.images):
            raise UserError(
                f"none of {len(chosen):,} images can be read: {found.bad[0][2]}"
            )
        return found.images

    def apply(self, params: Any, images: jax.Array | np.ndarray) -> jax.Array:
        """Return float32 [n, d] of prepared images [n h w c], for JAX to trace."""
        encoded = self._encoded(params, images)
        if self.pool == "cls":
            return jnp.asarray(encoded.cls, jnp.float32)
        vectors = encoded.grid.mean((1, 2), dtype=jnp.float32)
        if self.head_norm is None:
            return vectors
        norm = nn.LayerNorm(getattr(self.module, "norm_eps", 1e-6))
        return norm.apply({"params": self.head_norm}, vectors)

    def embed_source(self, source: Source, indices: range) -> Iterator[Embedded]:
        """Yield the features of these examples of a source, a batch at a time.

        Threads decode the next batch meanwhile. Bad images are reported, not raised.
        """
        for found in examples.read(source, indices, self._view, self._batch_size):
            for index, path, error in found.bad:
                if not isinstance(error, OSError | BadImage):
                    raise UserError(f"'{path or f'example {index}'}': {error}")
            images = found.images
            yield Embedded(
                found.indices,
                found.paths,
                found.labels,
                np.asarray(self._start(images))[: len(images)]
                if len(images)
                else np.zeros((0, self.dim), np.float32),
                found.bad,
            )

    # ---- One batch -------------------------------------------------------------------

    @property
    def _batch_size(self) -> int:
        return examples.batch_size(self.config.data.image_size)

    @functools.cached_property
    def _view(self) -> View:
        return unmasked_view(self.config.data)

    def _prepare(self, image: str | Path | bytes | np.ndarray) -> np.ndarray:
        found = content(self.config.data, image)
        if not isinstance(image, str | Path):
            return self._view_of(found)
        try:
            return self._view_of(found)
        except UserError as error:
            raise UserError(f"'{image}': {error}") from None

    def _view_of(self, image: bytes | str | np.ndarray) -> np.ndarray:
        example = {"image": image, "label": NO_LABEL}
        return self._view(example, np.random.default_rng(0))["image"]

    def _vectors(self, images: Sequence[Any] | np.ndarray) -> np.ndarray:
        return np.asarray(self._start(self.prepare(images)))[: len(images)]

    def _start(self, images: Sequence[np.ndarray] | np.ndarray) -> jax.Array:
        """Start on a batch of prepared images, padded so that it compiles once."""
        first = images[0]
        padded = np.zeros((self._batch_size, *first.shape), first.dtype)
        padded[: len(images)] = images
        return self._jitted(self.params, padded)

    @functools.cached_property
    def _jitted(self) -> Callable[[Any, np.ndarray], jax.Array]:
        return jax.jit(self.apply)

    @functools.cached_property
    def _encode(self) -> Callable[[Any, np.ndarray], Encoded]:
        return jax.jit(self._encoded)

    @functools.cached_property
    def _attend(self) -> Callable[[Any, np.ndarray], jax.Array]:
        last = f"blocks_{self.module.depth - 1}"
        height = self.config.data.image_size[0] // self.module.stride[0]

        def attend(params: Any, images: jax.Array | np.ndarray) -> jax.Array:
            pixels = values.normalization(self.config.data)(images)
            _, found = self.module.apply(
                {"params": params}, pixels, mutable=["intermediates"]
            )
            (weights,) = found["intermediates"][last]["attn"]["attention"]
            rows = weights[:, 0] if self.pool == "cls" else weights[:, 1:].mean(1)
            return rearrange(rows[:, 1:], "n (h w) -> n h w", h=height)

        return jax.jit(attend)

    @functools.cached_property
    def _encode_stages(self) -> Callable[[Any, np.ndarray], Encoded]:
        return jax.jit(functools.partial(self._encoded, stages=True))

    def _encoded(
        self, params: Any, images: jax.Array | np.ndarray, stages: bool = False
    ) -> Encoded:
        pixels = values.normalization(self.config.data)(images)
        return self.module.apply({"params": params}, pixels, stages=stages)
