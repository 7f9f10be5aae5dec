"""Vectors of features: of images, of data sets, in files."""

import csv
import dataclasses
import json
import re
import shutil
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pyarrow.parquet
import pytest
import tiny_config
from PIL import Image

import simmim_jax
from simmim_jax.checkpoints import store
from simmim_jax.cli.convert import main as convert
from simmim_jax.cli.embed import main
from simmim_jax.cli.evaluate import main as evaluate
from simmim_jax.cli.export import main as export
from simmim_jax.cli.look import main as look
from simmim_jax.cli.neighbours import main as neighbours
from simmim_jax.cli.probe import main as probe
from simmim_jax.config import schema
from simmim_jax.data.codecs.audio import Segment
from simmim_jax.data.sources.registry import open_source
from simmim_jax.errors import UserError
from simmim_jax.models.vit import relative_position_index
from simmim_jax.tasks import classify, embed, examples, parts, pretrain
from simmim_jax.tasks.encoder import Encoder
from simmim_jax.tasks.predict import Predictor
from simmim_jax.tasks.views import content
from simmim_jax.training import loop

FASHION = "bundled:fashion_mnist_10k"
SHORT = {"duration": "2 steps", "eval_every": "2 steps", "pictures": 0}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("pretrained")
    loop.train(pretrain.build(tiny_config.typed("pretrain", **SHORT), workdir))
    return workdir


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finetuned")
    fields = {"model.final_norm": False, "model.pool_norm": True}
    config = tiny_config.typed("finetune", **SHORT, **fields)
    loop.train(classify.build(config, workdir))
    return workdir


@pytest.fixture(scope="module")
def images():
    return open_source("bundled:fashion_mnist_10k", "validation").images[:70]


@pytest.fixture
def folder(tmp_path, images):
    """Two classes in two splits, one file that is no image."""
    for i, image in enumerate(images[:12]):
        split = "train" if i < 8 else "val"
        file = tmp_path / "set" / split / f"class {i % 2}" / f"{i:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[:, :, 0]).save(file)
    (tmp_path / "set" / "train" / "class 0" / "04.png").write_bytes(b"no image")
    return tmp_path / "set"


@pytest.mark.parametrize(("side", "images"), [(28, 64), (224, 8), (1024, 1)])
def test_large_images_come_in_small_batches_on_a_cpu(side, images):
    assert examples.batch_size((side, side)) == images


def test_a_vector_is_the_mean_of_the_last_map(pretrained, images):
    encoder = Encoder.load(pretrained)
    vectors = encoder.embed(images)  # more than one batch
    assert vectors.shape == (70, 16) == (70, encoder.dim)
    assert vectors.dtype == np.float32
    maps = encoder.features(images)
    assert maps.shape == (70, 2, 4, 16)
    np.testing.assert_allclose(vectors, maps.mean((1, 2)), atol=1e-6)
    # The same images one by one, as arrays of another kind.
    np.testing.assert_allclose(encoder.embed(list(images[:2])), vectors[:2], atol=1e-6)
    assert encoder.embed([]).shape == (0, 16)


def test_the_class_token_and_earlier_blocks(pretrained, images):
    encoder = Encoder.load(pretrained)
    first = Encoder.load(pretrained, block=1).embed(images[:2])
    token = Encoder.load(pretrained, pool="cls").embed(images[:2])
    last = encoder.embed(images[:2])
    assert not np.allclose(first, last)
    assert not np.allclose(token, last)
    # Without the final norm, which the last block is followed by.
    unnormed = Encoder.load(pretrained, block=2).features(images[:2])
    norm = nn.LayerNorm(1e-6).apply({"params": encoder.params["norm"]}, unnormed)
    np.testing.assert_allclose(norm.mean((1, 2)), last, atol=1e-5)
    for block in (0, 3):
        with pytest.raises(UserError, match=f"block={block}: expected .* has 1 to 2"):
            Encoder.load(pretrained, block=block)


def test_a_classifier_gives_what_its_head_sees(finetuned, images):
    encoder = Encoder.load(finetuned)
    assert encoder.head_norm is not None
    head = {"params": jax.tree.map(np.asarray, encoder.head_norm)}
    mean = encoder.features(images[:3]).mean((1, 2))
    expected = nn.LayerNorm(1e-6).apply(head, mean)
    np.testing.assert_allclose(encoder.embed(images[:3]), expected, atol=1e-5)


def test_a_file_that_is_no_image_is_named(pretrained, tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"a.png': 8 bytes starting with"):
        Encoder.load(pretrained).embed([file])


@pytest.mark.parametrize("ending", [".parquet", ".npy"])
def test_a_folder_becomes_a_file(pretrained, folder, tmp_path, ending, capsys):
    out = tmp_path / f"vectors{ending}"
    main([str(pretrained), str(folder), str(out)])
    output = capsys.readouterr().out
    assert "11 vectors of 16" in output
    assert "1 images left out" in output
    listed = (tmp_path / f"{out.name}.left_out.tsv").read_text().splitlines()
    assert listed[1].split("\t")[0] == "train"
    assert listed[1].endswith("class 0/04.png\tnot an image")
    encoder = Encoder.load(pretrained)
    files = [*sorted(folder.rglob("train/*/*.png")), *sorted(folder.rglob("val/*/*"))]
    files = [str(file) for file in files if file.name != "04.png"]
    expected = encoder.embed(files)
    if ending == ".npy":
        np.testing.assert_allclose(np.load(out), expected, atol=1e-6)
        assert out.with_suffix(".txt").read_text().splitlines() == files
        return
    table = pyarrow.parquet.read_table(out).to_pydict()
    assert table["path"] == files
    assert table["split"] == ["train"] * 7 + ["validation"] * 4
    assert table["class"][:4] == ["class 0"] * 3 + ["class 1"]
    assert table["label"][:4] == [0, 0, 0, 1]
    np.testing.assert_allclose(table["vector"], expected, atol=1e-6)


def test_an_interrupted_command_resumes(pretrained, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PART", 64)
    encoder = Encoder.load(pretrained)
    sources = {"test": open_source("bundled:fashion_mnist_10k", "validation")}
    sources["test"] = type(sources["test"])(sources["test"].images[:150], None, ())
    out, whole = tmp_path / "a.parquet", tmp_path / "b.parquet"
    assert embed.embed(encoder, sources, whole, plan={"step": 2}) == (150, 0)
    calls = []

    def interrupt(table, file):
        calls.append(file)
        if len(calls) == 3:
            raise KeyboardInterrupt
        write(table, file)

    write = parts._write
    monkeypatch.setattr(parts, "_write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        embed.embed(encoder, sources, out, plan={"step": 2})
    with pytest.raises(UserError, match="was begun with step=2, and now it is 3"):
        embed.embed(encoder, sources, out, plan={"step": 3})
    assert embed.embed(encoder, sources, out, plan={"step": 2}) == (150, 0)
    assert len(calls) == 4
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.parquet", "b.parquet"]
    with pytest.raises(UserError, match="exists already"):
        embed.embed(encoder, sources, out, plan={"step": 2})


def test_half_the_space(pretrained, folder, tmp_path):
    out = tmp_path / "vectors.parquet"
    main([str(pretrained), str(folder), str(out), "--float16", "--split=train"])
    table = pyarrow.parquet.read_table(out)
    assert (
        str(table.schema.field("vector").type)
        == "fixed_size_list<element: halffloat>[16]"
    )
    assert table.num_rows == 7


def test_nothing_to_embed_is_a_failure(pretrained, tmp_path, images):
    (tmp_path / "set").mkdir()
    for i in range(3):
        np.save(tmp_path / f"set/{i}.npy", images[i].astype(np.uint16))
    out = tmp_path / "out.npy"
    for _ in range(2):
        with pytest.raises(SystemExit, match=r"none of 3 images .* has the reasons"):
            main([str(pretrained), str(tmp_path / "set"), str(out)])
    assert [path.name for path in tmp_path.glob("out*")] == ["out.npy.left_out.tsv"]
    reasons = (tmp_path / "out.npy.left_out.tsv").read_text()
    assert reasons.count("other values\n") == 3


def test_models_are_shown_in_a_line(pretrained, finetuned):
    for path, name in ((pretrained, "Encoder"), (finetuned, "Predictor")):
        shown = repr(simmim_jax.load(path))
        assert re.fullmatch(rf"<{name}: vit, [\d,]+ parameters, step .*>", shown)


def test_parts_of_sounds_are_taken_as_they_are():
    data = tiny_config.typed("pretrain").data
    part = Segment("talk.wav", 0.5, 1.5)
    assert content(data, part) is part


def test_other_things_are_no_images(pretrained, images):
    with pytest.raises(UserError, match=r"of type Image: expected a path.*of Pillow"):
        Encoder.load(pretrained).embed([Image.fromarray(images[0][:, :, 0])])
    with pytest.raises(UserError, match=r"model='runs': expected what .*load"):
        simmim_jax.export("runs", "a.onnx")


def test_arrays_of_jax_are_images(pretrained, images):
    encoder = Encoder.load(pretrained)
    expected = encoder.embed(images[:3])
    np.testing.assert_array_equal(
        encoder.embed(jax.numpy.asarray(images[:3])), expected
    )
    each = [jax.numpy.asarray(image) for image in images[:3]]
    np.testing.assert_array_equal(encoder.embed(each), expected)


@pytest.mark.parametrize("kind", ["path", "folder", "array"])
def test_one_image_where_several_are_expected(kind, pretrained, finetuned, images):
    given = {"path": Path("a.npy"), "folder": "photos", "array": images[0]}[kind]
    for use in (Encoder.load(pretrained).prepare, Predictor.load(finetuned).predict):
        with pytest.raises(UserError, match=r"one.*expected"):
            use(given)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["nowhere", "bundled:climate", "x.parquet"], "nowhere"),
        (["RUN", "bundled:nothing", "x.parquet"], "nothing"),
        (["RUN", "bundled:fashion_mnist_10k", "x.csv"], "ends in .parquet or .npy"),
    ],
)
def test_mistakes_are_sentences(pretrained, args, says):
    args = [str(pretrained) if arg == "RUN" else arg for arg in args]
    with pytest.raises(SystemExit) as stopped:
        main(args)
    assert says in str(stopped.value)
    assert json.dumps(str(stopped.value)).count("\\n") <= 1


@pytest.mark.parametrize("name", ["embed", "evaluate", "export", "look", "neighbours"])
def test_a_place_that_cannot_be_written_to_is_a_sentence(
    name, pretrained, finetuned, folder, tmp_path
):
    file = tmp_path / "file"
    file.touch()
    command, args = {
        "embed": (main, [pretrained, folder, file / "x.npy"]),
        "evaluate": (evaluate, [finetuned, FASHION, f"--out={file / 'x'}"]),
        "export": (export, [pretrained, file / "x.safetensors"]),
        "look": (look, [pretrained, folder, f"--out={file / 'x'}"]),
        "neighbours": (neighbours, [pretrained, folder, f"--table={file / 'x.csv'}"]),
    }[name]
    with pytest.raises(SystemExit) as stopped:
        command(list(map(str, args)))
    assert re.fullmatch(
        rf"cannot read or write '{file}.*': .*(Not a directory|File exists)",
        str(stopped.value),
    )


# ---- Probe and neighbours ------------------------------------------------------------


def test_probe_prints_accuracies_with_intervals(pretrained, folder, capsys):
    probe([str(pretrained), str(folder), "--k=5"])
    output = capsys.readouterr().out
    assert re.search(
        r"^5 nearest neighbours: \d+\.\d\d% of 4 images right, 95 % interval",
        output,
        re.M,
    )
    assert "linear classifier: " in output
    rank = float(re.search(r"effective rank of the features: (.*)", output)[1])
    assert 1 <= rank <= 16


def test_probe_needs_labels(pretrained, tmp_path):
    Image.new("L", (30, 30)).save(tmp_path / "a.png")
    Image.new("L", (30, 30)).save(tmp_path / "b.png")
    with pytest.raises(SystemExit, match="has no labels in its split 'train'"):
        probe([str(pretrained), str(tmp_path)])
    for split, name in (("train", "a"), ("val", "a"), ("val", "b")):
        file = tmp_path / "set" / split / name / "0.png"
        file.parent.mkdir(parents=True)
        Image.new("L", (30, 30)).save(file)
    with pytest.raises(SystemExit, match=r"images to train on: .*/val/b\. Expected"):
        probe([str(pretrained), str(tmp_path / "set")])


def test_neighbours_of_a_query_begin_with_itself(pretrained, folder, tmp_path, capsys):
    query = str(sorted(folder.rglob("train/*/*.png"))[0])
    files = [f"--{name}={tmp_path}/found.{name}" for name in ("output", "table")]
    neighbours([str(pretrained), str(folder), "--query", query, "--k=3", *files])
    assert "1 images left out" in capsys.readouterr().out
    rows = list(csv.reader((tmp_path / "found.table").open()))
    assert rows[0] == ["query", "path", "cosine"]
    assert [row[1] for row in rows[1:2]] == [query]
    assert len(rows) == 4
    cosines = [float(row[2]) for row in rows[1:]]
    assert cosines[0] == pytest.approx(1, abs=1e-5)
    assert cosines == sorted(cosines, reverse=True)
    with Image.open(tmp_path / "found.output") as picture:
        assert picture.width > 4 * 96


def test_duplicates_are_listed_once(pretrained, folder, tmp_path, capsys):
    copies = sorted((folder / "train" / "class 1").iterdir())
    shutil.copy(copies[0], copies[0].with_name("copy.png"))
    files = [f"--{name}={tmp_path}/found.{name}" for name in ("output", "table")]
    neighbours([str(pretrained), str(folder), "--duplicates=0.99999", *files])
    assert "1 pairs" in capsys.readouterr().out
    (_, (query, path, cosine)) = csv.reader((tmp_path / "found.table").open())
    assert {query, path} == {str(copies[0]), str(copies[0].with_name("copy.png"))}
    assert float(cosine) == pytest.approx(1, abs=1e-5)


def test_load_gives_what_a_run_learned(pretrained, finetuned, images):
    encoder = simmim_jax.load(pretrained)
    np.testing.assert_array_equal(
        encoder.embed(images[:2]), Encoder.load(pretrained).embed(images[:2])
    )
    classifier = simmim_jax.load(finetuned)
    assert len(classifier.predict(list(images[:1]))[0]) == 10
    np.testing.assert_array_equal(
        classifier.embed(images[:2]), Encoder.load(finetuned).embed(images[:2])
    )


# ---- Pictures and reconstructions ----------------------------------------------------


def test_look_draws_patches_and_a_map(pretrained, folder, tmp_path, capsys):
    out = tmp_path / "pictures"
    look([str(pretrained), str(folder), "--images=4", f"--out={out}"])
    printed = capsys.readouterr().out
    assert f"picture: {out}/features.png, 3 images; red, green and blue" in printed
    assert f"picture: {out}/map.png, 7 of 8 images; its axes hold" in printed
    assert f"picture: {out}/attention.png, 3 images; " in printed
    for name in ("features.png", "attention.png", "map.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 200


def test_attention_is_computed_by_hand(images):
    """One block of two heads, whose weights NumPy computes again."""
    fields = {"model.depth": 1, "model.layer_scale": 0.1}
    config = tiny_config.typed("pretrain", **fields)
    model = pretrain.model_of(config)
    shapes = jax.eval_shape(
        model.init,
        jax.random.key(0),
        np.zeros((1, 28, 28, 1)),
        np.zeros((1, 2, 4), bool),
    )["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: rng.normal(0, 0.5, p.shape).astype("f4"), shapes)
    encoder = params["encoder"]
    pixels = (images[:3] / 255 - 0.286) / 0.353
    patches = pixels.reshape(3, 2, 14, 4, 7).transpose(0, 1, 3, 2, 4).reshape(3, 8, 98)
    embed = encoder["patch_embed"]
    patches = patches @ embed["kernel"].reshape(98, 16) + embed["bias"]
    cls = np.broadcast_to(encoder["cls_token"], (3, 1, 16))
    tokens = np.concatenate([cls, patches], 1)
    block = encoder["blocks_0"]
    tokens = tokens - tokens.mean(-1, keepdims=True)
    tokens /= np.sqrt((tokens**2).mean(-1, keepdims=True) + 1e-6)
    tokens = tokens * block["norm1"]["scale"] + block["norm1"]["bias"]
    kernel = block["attn"]["qkv_kernel"]
    queries = tokens @ kernel[:, :16] + block["attn"]["q_bias"]
    keys = tokens @ kernel[:, 16:32]
    table = encoder["rel_pos_bias"]["relative_position_bias_table"]
    biases = table[relative_position_index(2, 4)]
    maps = []
    for head in range(2):
        part = slice(8 * head, 8 * head + 8)
        logits = queries[..., part] @ keys[..., part].swapaxes(1, 2) / 8**0.5
        weights = np.exp(logits + biases[..., head])
        maps.append(weights / weights.sum(-1, keepdims=True))
    expected = np.mean(maps, 0)
    for pool, rows in (("mean", expected[:, 1:].mean(1)), ("cls", expected[:, 0])):
        built = Encoder.of(params, config, 0, pool=pool)
        found = built.attention(images[:3])
        assert found.shape == (3, 2, 4)
        np.testing.assert_allclose(found.reshape(3, 8), rows[:, 1:], rtol=1e-4)


def test_a_swin_has_no_map_of_attention(images):
    config = tiny_config.get_config("pretrain")
    config.model = schema.config_dict(
        schema.Swin(
            patch_size=(7, 7), embed_dim=8, depths=(1,), num_heads=(1,), window_size=2
        )
    )
    config.mask.unit_size = (14, 14)
    config = schema.parse(config)
    model = pretrain.model_of(config)
    shapes = jax.eval_shape(
        model.init,
        jax.random.key(0),
        np.zeros((1, 28, 28, 1)),
        np.zeros((1, 4, 4), bool),
    )["params"]
    with pytest.raises(UserError, match="a Swin attends within windows"):
        Encoder.of(shapes, config, 0).attention(images[:1])


def test_reconstructions_are_those_of_the_model(pretrained, images):
    found = simmim_jax.load(pretrained).reconstruct(images)
    assert found.masks.shape == (70, 28, 28)
    assert found.pixels.shape == found.images.shape == (70, 28, 28, 1)
    np.testing.assert_array_equal(found.images, images)
    params, meta = store.load(pretrained)
    config = schema.single(schema.parse(meta["config"], stored=True))
    mask = found.masks[:3, ::14, ::7]  # of patches
    assert mask.mean() == pytest.approx(config.mask.ratio, abs=0.15)
    seen = (images[:3] / 255 - 0.286) / 0.353  # tiny_config's mean and std
    predicted = pretrain.model_of(config).apply({"params": params}, seen, mask)
    expected = 255 * (0.353 * np.asarray(predicted) + 0.286)
    np.testing.assert_allclose(found.pixels[:3], expected, atol=1e-2)


def test_nothing_is_predicted_from_what_is_hidden(pretrained, images):
    encoder = simmim_jax.load(pretrained)
    found = encoder.reconstruct(images[:5])
    changed = np.where(found.masks[..., None], 255 - images[:5], images[:5])
    again = encoder.reconstruct(changed)
    np.testing.assert_allclose(again.pixels, found.pixels, atol=1e-3)
    other = encoder.reconstruct(images[:5], seed=1)
    assert (other.masks != found.masks).any()


def test_a_classifier_has_no_decoder(finetuned, images):
    with pytest.raises(UserError, match="has no decoder to reconstruct images with"):
        Encoder.load(finetuned).reconstruct(images[:1])


@pytest.fixture(scope="module")
def square(tmp_path_factory):
    """A classifier of square patches, which transformers has, too."""
    path = tmp_path_factory.mktemp("square") / "classifier"
    config = tiny_config.typed("finetune", **{"model.patch_size": (7, 7)})
    learner, _ = classify.learner(config, num_examples=40, num_classes=3)
    params = jax.jit(learner.init)(jax.random.key(0))
    meta = {"config": schema.to_dict(config), "class_names": list("abc"), "step": 0}
    store.write(path, params, meta)
    return path


@pytest.mark.parametrize("to", ["official", "timm", "huggingface"])
def test_weights_of_other_libraries_are_converted_on_loading(
    to, square, images, tmp_path
):
    place = tmp_path / ("model.safetensors" if to == "official" else "model")
    convert([str(square), str(place), f"--to={to}"])
    loaded, expected = simmim_jax.load(place), simmim_jax.load(square)
    np.testing.assert_allclose(
        loaded.embed([images[0]]), expected.embed([images[0]]), atol=1e-5
    )
    assert len(loaded.predict([images[0]])[0]) == 3


def test_what_foreign_weights_lack_is_said(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"model.safetensors"):
        simmim_jax.load(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"has no config\.json and no checkpoint"):
        simmim_jax.load(tmp_path)


def test_prepared_images_are_not_cropped_again(pretrained, images):
    params, meta = store.load(pretrained)
    config = schema.parse(meta["config"], stored=True)
    data = dataclasses.replace(config.data, eval_crop=0.5)
    encoder = Encoder.of(params, dataclasses.replace(config, data=data), 0)
    cropped = encoder.prepare(images[:2])
    assert (cropped != images[:2]).any()
    for function in (encoder.features, encoder.attention):
        np.testing.assert_array_equal(
            function(images[:2]), function(cropped, prepared=True)
        )
        assert (function(cropped) != function(cropped, prepared=True)).any()
