"""Speech to text: teach a pre-trained encoder, or a fresh one, to transcribe (CTC)."""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from simmim_jax.config import schema
from simmim_jax.config.schema import Transcribe
from simmim_jax.data.codecs.vocabulary import TextRule, Vocabulary
from simmim_jax.data.sources.base import Source
from simmim_jax.data.views.utterance import UtteranceView
from simmim_jax.errors import UserError
from simmim_jax.models import build_transcriber, plain
from simmim_jax.models.transcriber import Transcriber
from simmim_jax.runtime import sharding
from simmim_jax.tasks import (
    ctc_decoding,
    error_rates,
    inputs,
    precision,
    pretrained,
    utterances,
    values,
)
from simmim_jax.tasks.optimizer import notices, optimizer
from simmim_jax.tasks.resumed import changes_of
from simmim_jax.tasks.transcribe_step import (
    character_loss,
    transcribe_loss,
    transcribe_prepare,
)
from simmim_jax.tasks.utterances import Utterances
from simmim_jax.training import steps
from simmim_jax.training.inputs import with_progress
from simmim_jax.training.run import Evaluate, Learner, Run

# Lengths that batches are padded to: this many parts of the longest.
_BUCKETS = 8


def learner(
    config: Transcribe, num_examples: int, vocabulary: Vocabulary, num_labels: int
) -> tuple[Learner, Transcriber]:
    """Return what learns in speech to text, and its model.

    num_labels: of the longest text.
    raises: UserError where `config` makes no sense.
    """
    model = build_transcriber(
        num_classes=vocabulary.num_classes,
        dtype=precision.of_machine(config.dtype),
        **schema.to_dict(config.model),
    )
    images = jnp.zeros((1, *config.data.image_size, 1))
    frames = jnp.ones(1, jnp.int32)
    frozen = ("encoder",) if config.freeze_encoder else ()
    drop_paths = not config.freeze_encoder
    view = view_of(config, vocabulary, num_labels)
    return (
        Learner(
            init=lambda key: model.init(key, images, frames)["params"],
            prepare=transcribe_prepare(
                config.augment, values.normalization(config.data)
            ),
            loss=transcribe_loss(model, drop_paths=drop_paths),
            plain_loss=transcribe_loss(plain(model), drop_paths=False),
            batch=inputs.batch_like(config.data, view),
            optimizer=optimizer(
                config,
                num_examples,
                layer_id=model.layer_id,
                layer_decay=config.optim.layer_decay,
                frozen=frozen,
            ),
            seed=config.seed,
            frozen=frozen,
            accumulation=config.optim.accumulation,
            ema_decay=config.ema_decay,
        ),
        model,
    )


def rule_of(config: Transcribe) -> TextRule:
    """Return how transcripts are normalised."""
    return TextRule(config.text.casefold, config.text.punctuation)


def view_of(
    config: Transcribe, vocabulary: Vocabulary, num_labels: int
) -> UtteranceView:
    """Return the view of training and evaluation; num_labels: of the longest text."""
    return UtteranceView(
        size=config.data.image_size,
        rule=rule_of(config),
        vocabulary=vocabulary,
        num_labels=num_labels,
    )


def build(
    config: Transcribe,
    workdir: Path,
    *,
    train: Source | None = None,
    held_out: Source | None = None,
    path: str = "config",
) -> Run:
    """Return the run of a config; raises UserError where it makes no sense.

    train, held_out: in place of the splits of config.data.dataset; path: of `config`,
    to name its fields.
    """
    data = config.data
    if train is None:
        train = inputs.open_split(data, data.train_split)
    if held_out is None:
        held_out = inputs.open_split(data, data.eval_split)
    said = []
    spoken = {}
    for split, source in (("train_split", train), ("eval_split", held_out)):
        spoken[split], lines = utterances.read(
            source, rule_of(config), data.image_size[1]
        )
        said += [f"{path}.data.{split}: {line}, left out" for line in lines]
        if not len(spoken[split]):
            raise UserError(
                f"{path}.data.{split}={getattr(data, split)!r} has no utterance with a "
                "transcript that fits: expected sounds with a text, such as a .csv "
                "with the columns path and text. " + "; ".join(lines)
            )
    learned, heard = spoken["train_split"], spoken["eval_split"]
    if data.num_labels:
        learned = utterances.drawn(learned, data.num_labels, config.seed)
    vocabulary = Vocabulary.of(learned.texts)
    learned, lines = utterances.fitting(learned, vocabulary, config.model.patch_size[1])
    said += [f"{path}.data.train_split: {line}, left out" for line in lines]
    if unknown := set("".join(heard.texts)) - set(vocabulary.characters):
        said.append(
            f"{path}.data.eval_split has characters that training lacks, and are "
            f"errors: {''.join(sorted(unknown))}"
        )
    config, measured = values.resolve(config, learned.source, workdir, path)
    num_labels = learned.num_labels(vocabulary)
    record: dict[str, Any] = {
        "config": schema.to_dict(config),
        "vocabulary": vocabulary.characters,
    }
    learns, model = learner(config, len(learned), vocabulary, num_labels)
    record |= pretrained.record(config, learns)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    return Run(
        title="transcribe",
        workdir=workdir,
        learner=learns,
        mesh=mesh,
        lengths=inputs.lengths(config, len(learned)),
        description=_description(config, learned, heard, vocabulary),
        stream=functools.partial(
            inputs.train_batches,
            config,
            learned.source,
            workdir,
            view=view_of(config, vocabulary, num_labels),
        ),
        evaluate=evaluation(config, model, vocabulary, heard, workdir, mesh),
        best="cer",
        mode="min",
        record=record,
        changes=changes_of(workdir, config, record, len(learned)),
        notices=(*measured, *said, *notices(config, len(learned), path)),
        restore=functools.partial(pretrained.restore, config)
        if config.init_from
        else None,
        keep_checkpoints=config.keep_checkpoints,
        wandb=config.wandb,
        profile=(config.profile.start_step, config.profile.num_steps),
    )


def _description(
    config: Transcribe, learned: Utterances, heard: Utterances, vocabulary: Vocabulary
) -> str:
    minutes = [each.frames.sum() / 6000 for each in (learned, heard)]
    return (
        f"{config.data.dataset}: {len(learned):,} utterances to train on "
        f"({minutes[0]:.1f} min), {len(heard):,} held out ({minutes[1]:.1f} min), "
        f"{len(vocabulary.characters)} characters: {vocabulary.characters!r}"
    )


def decode(log_probs: np.ndarray, beam_width: int) -> tuple[int, ...]:
    """Return the labels of an utterance, float [tokens classes] without padding."""
    if beam_width == 1:
        return ctc_decoding.greedy(log_probs)
    return ctc_decoding.beam_search(log_probs, beam_width)[0]


def bucket(frames: int, longest: int, patch: int) -> int:
    """Return the length that `frames` are padded to: one of a few, whole patches."""
    part = -(-longest // (_BUCKETS * patch)) * patch
    return min(-(-frames // part) * part, longest)


def evaluation(
    config: Transcribe,
    model: Transcriber,
    vocabulary: Vocabulary,
    heard: Utterances,
    workdir: Path,
    mesh: jax.sharding.Mesh,
) -> Evaluate:
    """Return (params, step) -> error rates of the held-out utterances.

    "cer" and "wer" are shares, each with the ends "_low" and "_high" of its 95 %
    interval; "eval_loss" is the mean of `character_loss` of texts that fit. Writes
    every reference beside what is heard to <workdir>/transcripts/<step>.jsonl.
    """
    data, beam_width = config.data, config.beam_width
    patch = config.model.patch_size[1]
    normalization = values.normalization(data)
    heard = utterances.by_length(heard)
    view = view_of(config, vocabulary, heard.num_labels(vocabulary))
    passes = inputs.eval_pass(data, heard.source, workdir, view=view)

    @functools.partial(jax.jit, out_shardings=jax.NamedSharding(mesh, jax.P()))
    def apply(params: Any, batch: steps.Batch) -> dict[str, jax.Array]:
        with sharding.on_mesh(mesh):
            logits = model.apply(
                {"params": sharding.gathered(params, mesh)},
                normalization(batch["image"]),
                batch["num_frames"],
            )
        return {
            "log_probs": jax.nn.log_softmax(logits),
            "tokens": model.num_tokens(batch["num_frames"]),
            "loss": character_loss(model, logits, batch),
            "weight": batch["weight"],
        }

    def transcripts(params: Any) -> Iterator[tuple[str, str, float]]:
        """Yield reference, hypothesis and loss of every utterance that can be read."""
        for index, batch in enumerate(with_progress(passes)):
            first = index * data.batch_size
            longest = bucket(int(heard.frames[first]), data.image_size[1], patch)
            batch["image"] = batch["image"][:, :, :longest]
            found = jax.device_get(apply(params, sharding.to_devices(batch, mesh)))
            for row, text in enumerate(heard.texts[first : first + data.batch_size]):
                if not found["weight"][row]:
                    continue
                log_probs = found["log_probs"][row, : found["tokens"][row]]
                labels = decode(log_probs, beam_width)
                yield text, vocabulary.decode(labels), float(found["loss"][row])

    def evaluate(params: Any, step: int) -> dict[str, float]:
        rows = list(transcripts(params))
        references, hypotheses, losses = map(list, zip(*rows, strict=True))
        if jax.process_index() == 0:
            _write(
                workdir / "transcripts" / f"{step:07d}.jsonl", references, hypotheses
            )
        metrics: dict[str, float] = {}
        for name, of in (("cer", error_rates.characters), ("wer", error_rates.words)):
            rate = of(references, hypotheses)
            low, high = rate.interval
            metrics |= {name: rate.rate, f"{name}_low": low, f"{name}_high": high}
        fitting = np.isfinite(losses)
        metrics["eval_loss"] = float(np.mean(np.array(losses)[fitting]))
        return metrics | passes.bad.metrics("eval_bad_images")

    return evaluate


def _write(path: Path, references: list[str], hypotheses: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (
        json.dumps({"reference": r, "hypothesis": h}, ensure_ascii=False) + "\n"
        for r, h in zip(references, hypotheses, strict=True)
    )
    path.write_text("".join(lines), encoding="utf-8")
