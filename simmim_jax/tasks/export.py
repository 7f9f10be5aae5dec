"""A trained model as a file that runs without this package.

Images go in as they are cropped, of the run's size and dtype; normalisation is inside.
Every file is read back and compared before it counts as written.
"""

import dataclasses
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from simmim_jax.config import schema
from simmim_jax.errors import UserError
from simmim_jax.tasks.encoder import Encoder
from simmim_jax.tasks.predict import Predictor
from simmim_jax.tasks.recognize import Recognizer
from simmim_jax.tasks.segment_predict import SegmentPredictor
from simmim_jax.tasks.views import eval_view

Apply = Callable[[jax.Array], jax.Array]

# Largest difference from our own results.
TOLERANCE = 1e-5
# Batches that files are compared at: some converters go wrong beyond the first image.
_BATCHES = (1, 3)
_PLATFORMS = ("cpu", "cuda", "tpu")
_ONNX = (
    "pip install 'simmim_jax[export]' && pip install --no-deps jax2onnx==0.17.1 (its "
    "own requirements exclude the orbax-checkpoint that this package needs)"
)


def export(
    model: Encoder | Predictor | Recognizer | SegmentPredictor,
    path: str | Path,
    format: str = "",
) -> str:
    """Write a model to a file, read it back and compare.

    format: "stablehlo", for CPUs, CUDA and TPUs through jax.export; "onnx"; both map
    images [b, h, w, c] of any batch size to probabilities or numbers, or to vectors
    without a classifier. "safetensors": parameters by name, and the config beside them.
    "": what the ending of `path` says.
    returns: what was written, in a line.
    raises: UserError where a package is missing, the file gives other results, or the
    model returns masks or text.
    """
    if isinstance(model, Recognizer | SegmentPredictor):
        raise UserError(
            f"a {model.config.mode!r} run cannot be exported as a whole: expected a "
            "classifier or an encoder. `simmim export --embed` exports its encoder."
        )
    if not isinstance(model, Encoder | Predictor):
        raise UserError(
            f"model={model!r:.80}: expected what simmim_jax.load(...) returns."
        )
    path = Path(path).expanduser()
    format = format or path.suffix[1:]
    if format not in FORMATS:
        raise UserError(f"format={format!r}: expected one of {', '.join(FORMATS)}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        said = FORMATS[format](model, unfinished, path)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return f"{path}: {said}"


def _stablehlo(model: Encoder | Predictor, file: Path, path: Path) -> str:
    del path
    try:
        import flatbuffers  # noqa: F401, jax.export serialises with it
    except ImportError as error:
        raise UserError(
            "format='stablehlo' needs flatbuffers: pip install 'simmim_jax[export]'."
        ) from error
    from jax import export as jax_export

    apply, like = _function(model)
    traced = jax_export.export(jax.jit(apply), platforms=_PLATFORMS)
    exported = traced(_any_batch(like))
    file.write_bytes(exported.serialize())
    read = jax_export.deserialize(bytearray(file.read_bytes()))
    worst = _compare(apply, like, lambda x: np.asarray(read.call(x)), "jax.export")
    return f"StableHLO for {', '.join(_PLATFORMS)}, {_signature(model, like)}, {worst}"


def _onnx(model: Encoder | Predictor, file: Path, path: Path) -> str:
    del path
    try:
        import jax2onnx
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UserError(f"format='onnx' needs {error.name}: {_ONNX}.") from error
    # It warns of each shape that jax2onnx writes; the results are compared below.
    logging.getLogger("onnx_ir.serde").setLevel(logging.ERROR)
    apply, like = _function(model)
    proto = jax2onnx.to_onnx(
        apply,
        inputs=[_any_batch(like)],
        input_names=["images"],
        output_names=[_output(model)],
    )
    onnx.save(proto, str(file))
    session = onnxruntime.InferenceSession(
        str(file), providers=["CPUExecutionProvider"]
    )
    worst = _compare(
        apply, like, lambda x: session.run(None, {"images": x})[0], "ONNX Runtime"
    )
    return f"ONNX, {_signature(model, like)}, {worst}"


def _safetensors(model: Encoder | Predictor, file: Path, path: Path) -> str:
    try:
        from safetensors.numpy import load_file, save
    except ImportError as error:
        raise UserError(
            "format='safetensors' needs safetensors: pip install 'simmim_jax[export]'."
        ) from error
    leaves = jax.tree_util.tree_leaves_with_path(model.params)
    named = {
        ".".join(str(key.key) for key in keys): np.ascontiguousarray(value, np.float32)
        for keys, value in leaves
    }
    file.write_bytes(save(named))  # save_file would give the file mode 0600
    read = load_file(file)
    if any(not np.array_equal(read[name], value) for name, value in named.items()):
        raise UserError("safetensors reads other values than it wrote: file removed.")
    config: dict[str, Any] = {"config": schema.to_dict(model.config)}
    if isinstance(model, Predictor):
        config["class_names"] = model.class_names
    beside = path.with_suffix(".json")
    beside.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return f"{len(named)} arrays, float32; config in {beside}"


FORMATS = {"stablehlo": _stablehlo, "onnx": _onnx, "safetensors": _safetensors}


def _function(model: Encoder | Predictor) -> tuple[Apply, jax.ShapeDtypeStruct]:
    """Return images -> results with constant parameters, and what an image is like."""
    params = jax.tree.map(jnp.asarray, model.params)
    spec = eval_view(model.config.data).spec["image"]
    apply = _in_float32(model).apply

    def results(images: jax.Array) -> jax.Array:
        return apply(params, images)

    return results, jax.ShapeDtypeStruct(spec.shape, np.dtype(spec.dtype))


def _any_batch(like: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Return what a batch of any size of such images is like."""
    from jax import export as jax_export

    (batch,) = jax_export.symbolic_shape("b")
    return jax.ShapeDtypeStruct((batch, *like.shape), like.dtype)


def _in_float32(model: Encoder | Predictor) -> Encoder | Predictor:
    """Return the model with float32 activations, which every runtime has."""
    if isinstance(model, Encoder):
        return dataclasses.replace(
            model,
            module=model.module.clone(dtype=jnp.float32, activation_dtype=jnp.float32),
        )
    encoder = model.model.encoder.clone(dtype=jnp.float32, activation_dtype=jnp.float32)
    return dataclasses.replace(model, model=model.model.clone(encoder=encoder))


def _compare(
    apply: Apply,
    like: jax.ShapeDtypeStruct,
    run: Callable[[np.ndarray], np.ndarray],
    name: str,
) -> str:
    """Return the largest difference from our own results, in words.

    raises: UserError if it is above the tolerance.
    """
    rng = np.random.default_rng(0)
    worst = 0.0
    for batch in _BATCHES:
        noise = rng.uniform(0, 255, (batch, *like.shape)).astype(like.dtype)
        ours, theirs = np.asarray(jax.jit(apply)(noise)), np.asarray(run(noise))
        if ours.shape != theirs.shape:
            raise UserError(
                f"{name} gives {list(theirs.shape)} for {batch} images: expected "
                f"{list(ours.shape)}. The file was removed."
            )
        scale = max(1.0, float(np.abs(ours).max()))
        worst = max(worst, float(np.abs(ours - theirs).max()) / scale)
    if not worst <= TOLERANCE:
        raise UserError(
            f"{name} differs from our results by {worst:.1e}: expected at most "
            f"{TOLERANCE:.0e}. The file was removed."
        )
    return f"{name} differs by {worst:.0e}"


def _signature(model: Encoder | Predictor, like: jax.ShapeDtypeStruct) -> str:
    shape = ", ".join(map(str, like.shape))
    size = len(model.class_names) if isinstance(model, Predictor) else model.dim
    return f"{like.dtype.name} [b, {shape}] -> {_output(model)} [b, {size}]"


def _output(model: Encoder | Predictor) -> str:
    if isinstance(model, Encoder):
        return "vectors"
    return "numbers" if model.has_numbers else "probabilities"
