"""The config schema: meaning, defaults, types and checks of every field."""

import dataclasses
import importlib
import math

import pytest
import tiny_config
from flax.traverse_util import flatten_dict

from simmim_jax.cli import arguments
from simmim_jax.config import schema
from simmim_jax.config.parsing import leaves, meaning, parse_group
from simmim_jax.configs import ablations, common, models, quickstart
from simmim_jax.errors import UserError

RUNS = {
    f"{mode}-{encoder}": (cls, encoder)
    for mode, cls in (
        ("pretrain", schema.Pretrain),
        ("finetune", schema.Finetune),
        ("segment", schema.Segment),
    )
    for encoder in schema.ENCODERS
}


def fields_of(run):
    """Return the default fields of a mode and encoder, as nested dicts."""
    cls, encoder = RUNS[run]
    fields = schema.to_dict(cls())
    model = schema.ENCODERS[encoder]
    if cls is not schema.Pretrain:
        head = schema.classifier if cls is schema.Finetune else schema.segmenter
        model = head(model)
    return fields | {"model": schema.to_dict(model())}


def groups(config):
    """Yield each group of fields of a config, the config itself included."""
    yield config
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        if dataclasses.is_dataclass(value):
            yield from groups(value)


def parse(mode, /, **fields):
    return tiny_config.typed(mode, **fields)


# ---- Meaning and defaults ------------------------------------------------------------


@pytest.mark.parametrize("run", RUNS)
def test_every_field_has_a_sentence(run):
    config = schema.parse(fields_of(run))
    for name, field, _, _ in leaves(config):
        doc = meaning(field).doc
        assert doc, name
        assert doc.endswith((".", '".')), name
        assert doc[0].isupper() or doc[0] == '"', name
        assert " " in doc, name
    for group in groups(config):
        assert type(group).__doc__, group
        for field in dataclasses.fields(group):
            assert meaning(field).doc, field.name


@pytest.mark.parametrize("run", RUNS)
def test_every_default_passes_its_own_check(run):
    fields = fields_of(run)
    assert schema.to_dict(schema.parse(fields)) == fields
    for group in groups(schema.parse(fields)):
        values = {
            name: value
            for name, value in vars(group).items()
            if not dataclasses.is_dataclass(value)
        }
        parse_group(type(group), values, "config")


def test_number_of_fields():
    counts = {run: len(list(leaves(schema.parse(fields_of(run))))) for run in RUNS}
    assert min(counts.values()) > 60
    assert len(dataclasses.fields(schema.ViT)) > 15


@pytest.mark.parametrize("run", RUNS)
def test_allowed_values_are_stated_for_bounded_fields(run):
    for name, field, kind, _ in leaves(schema.parse(fields_of(run))):
        what = meaning(field)
        if what.low is not None or what.choices:
            assert what.allowed, name
        if kind is int and name != "profile.start_step":
            assert what.low is not None, name


@pytest.mark.parametrize("run", RUNS)
def test_configs_are_frozen(run):
    config = schema.parse(fields_of(run))
    for group in groups(config):
        assert type(group).__dataclass_params__.frozen
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.optim.lr = 1.0


def test_defaults_are_the_official_vit_base_runs():
    assert schema.Pretrain() == schema.parse(common.pretrain())
    assert schema.Finetune() == schema.parse(common.finetune())
    assert (
        schema.Segment().model == schema.parse(common.segment(drop_path_rate=0.1)).model
    )


def test_harmless_fields_do_not_change_what_is_learned():
    names = schema.harmless(schema.Pretrain())
    assert {"log_every", "keep_checkpoints", "model.remat", "mesh.fsdp"} <= names
    learned = {"seed", "optim.lr", "data.batch_size", "model.depth", "duration"}
    assert not learned & names
    assert "eval_every" not in names


# ---- Missing, unknown and other types ------------------------------------------------


@pytest.mark.parametrize("run", RUNS)
def test_missing_fields_get_their_defaults(run):
    cls, encoder = RUNS[run]
    few = {"mode": cls().mode, "model": {"name": encoder}}
    if cls is schema.Pretrain:
        few["mask"] = {}
    parsed = schema.parse(few)
    if encoder == "vit" and cls is not schema.Pretrain:
        # Config files start from Finetune(), whose ViT differs from a bare one.
        parsed = dataclasses.replace(parsed, model=cls().model)
    fields = schema.to_dict(schema.parse(fields_of(run)))
    if encoder == "vit":
        fields["model"] = schema.to_dict(cls().model)
    assert schema.to_dict(parsed) == fields


@pytest.mark.parametrize(
    ("mode", "field"),
    [("pretrain", "loss"), ("pretrain", "data"), ("finetune", "data")],
)
def test_old_config_without_a_group_gets_its_defaults(mode, field):
    fields = tiny_config.get_config(mode).to_dict()
    del fields[field]
    if field == "data":
        fields["data"] = {"channels": 1, "mean": (0.5,), "std": (0.5,)}
    parsed = schema.parse(fields)
    default = getattr(
        schema.Pretrain() if mode == "pretrain" else schema.Finetune(), field
    )
    if field == "data":
        default = dataclasses.replace(default, **fields["data"])
    assert getattr(parsed, field) == default


@pytest.mark.parametrize(
    ("field", "says"),
    [
        ("sede", r'unknown config field config\.sede: .* Did you mean "seed"\?'),
        ("optim.learning_rate", r"config\.optim\.learning_rate: expected one of lr, "),
        ("optim.warm_up", r'config\.optim\.warm_up: .* Did you mean "warmup"\?'),
        ("model.dept", r'config\.model\.dept: .* Did you mean "depth"\?'),
        ("mask.rate", r'config\.mask\.rate: .* Did you mean "ratio"\?'),
        ("targets.kind", r'config\.targets: .* Did you mean "target"\?'),
    ],
)
def test_unknown_field_suggests_a_known_one(field, says):
    fields = tiny_config.get_config("pretrain").to_dict()
    *path, name = field.split(".")
    group = fields
    for part in path:
        group = group.setdefault(part, {})
    group[name] = 1
    with pytest.raises(UserError, match=says):
        schema.parse(fields)


def test_fields_of_another_encoder_are_unknown():
    fields = tiny_config.get_config("pretrain").to_dict()
    fields["model"]["window_size"] = 7
    with pytest.raises(UserError, match=r"config\.model\.window_size: expected one of"):
        schema.parse(fields)


def test_group_in_place_of_a_value_and_value_in_place_of_a_group():
    fields = tiny_config.get_config("pretrain").to_dict()
    with pytest.raises(UserError, match=r"config\.optim=3: expected fields"):
        schema.parse(fields | {"optim": 3})
    with pytest.raises(UserError, match=r"config\.seed=.*: expected a whole number"):
        schema.parse(fields | {"seed": {"a": 1}})


def test_lists_become_tuples():
    fields = tiny_config.get_config("pretrain").to_dict()
    fields["data"]["image_size"] = [28, 28]
    fields["data"]["mean"] = [0.286]
    fields["optim"]["milestones"] = ["5 steps"]
    parsed = schema.parse(fields)
    assert parsed.data.image_size == (28, 28)
    assert parsed.data.mean == (0.286,)
    assert parsed.optim.milestones == ("5 steps",)
    assert hash(parsed) == hash(schema.parse(fields))


def test_ints_become_floats_and_whole_floats_ints():
    fields = tiny_config.get_config("pretrain").to_dict()
    fields["optim"]["lr"] = 1
    fields["data"]["mean"] = (1,)
    fields["model"]["depth"] = 3.0
    parsed = schema.parse(fields)
    assert (parsed.optim.lr, type(parsed.optim.lr)) == (1.0, float)
    assert type(parsed.data.mean[0]) is float
    assert (parsed.model.depth, type(parsed.model.depth)) == (3, int)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("seed", 1.5, "a whole number"),
        ("seed", True, "a whole number"),
        ("seed", "1", "a whole number"),
        ("optim.lr", "fast", "a number"),
        ("optim.lr", None, "a number"),
        ("optim.lr", True, "a number"),
        ("wandb", 1, "True or False"),
        ("data.flip", "yes", "True or False"),
        ("dtype", 32, "a text"),
        ("data.image_size", 28, "height and width in pixels, such as .*='.64, 64.'"),
        ("data.image_size", (28, 28, 1), "height and width in pixels"),
        ("data.image_size", (28, 28.5), "a whole number"),
        ("data.crop_ratio", (1.0,), "width / height"),
        ("data.mean", 0.5, "pixels in 0..1"),
        ("data.mean", ("0.5",), "a number"),
        ("optim.milestones", "5 steps", "durations"),
        ("optim.milestones", ("5 stops",), "invalid duration"),
        ("duration", "10", "invalid duration"),
        ("duration", 10, "invalid duration"),
        ("optim.warmup", "often", "invalid duration"),
        ("eval_every", "-1 steps", "invalid duration"),
    ],
)
def test_wrong_types_raise_with_field_and_value(field, value, says):
    fields = tiny_config.get_config("pretrain").to_dict()
    *path, name = field.split(".")
    group = fields
    for part in path:
        group = group[part]
    group[name] = value
    with pytest.raises(UserError, match=says) as error:
        schema.parse(fields)
    assert str(error.value).startswith(f"config.{field}={value!r}: ")


# ---- Choices, ranges and combinations ------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("magnitude", 11.0, "0 to 10"),
        ("magnitude", -1.0, "0 to 10"),
        ("erase_prob", 1.5, "0 to 1"),
        ("mix_prob", 2.0, "0 to 1"),
        ("mix_switch_prob", -0.1, "0 to 1"),
        ("num_ops", -1, "0 or more"),
        ("mixup_alpha", -0.8, "0 or more"),
        ("magnitude_std", float("nan"), "0 or more"),
    ],
)
def test_augmentation_out_of_range_raises(field, value, expected):
    with pytest.raises(ValueError, match=f"{field}={value}: expected {expected}"):
        parse("finetune", **{f"augment.{field}": value})


@pytest.mark.parametrize("run", RUNS)
def test_choices_and_bounds_of_every_field_are_checked(run):
    for name, field, kind, default in leaves(schema.parse(fields_of(run))):
        what, wrong = meaning(field), []
        numbers = {int: 1, float: 0.5, tuple[int, int]: 1}
        step = numbers.get(kind)
        if what.choices:
            wrong = ["other"]
        elif kind in (int, float):
            wrong += [what.low - step] if what.low is not None else []
            wrong += [what.high + step] if what.high is not None else []
            wrong += [what.below] if what.below is not None else []
            wrong += [math.nan] if kind is float and wrong else []
        elif kind == tuple[int, int] and what.low is not None:
            wrong += [(what.low - 1, what.low)]
        for value in wrong:
            fields = fields_of(run)
            *path, last = name.split(".")
            group = fields
            for part in path:
                group = group[part]
            group[last] = value
            with pytest.raises(UserError, match="expected") as error:
                schema.parse(fields)
            assert f"config.{name}={value!r}" in str(error.value), default


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("mask.kind", "grid", "expected one of .*'block'"),
        ("target.kind", "hog", "expected one of .*normalized"),
        ("loss.kind", "l3", "expected one of .*smooth_l1"),
        ("loss.kind", "huber", "expected one of .*smooth_l1"),
        ("loss.area", "visible", "expected one of .*masked"),
        ("loss.bins", 1, "expected 2 to 256"),
        ("target.downsample", 0, "expected 1 or more"),
        ("decoder.kind", "unet", "expected one of .*mlp"),
        ("optim.decay", "exponential", "expected one of .*'multistep'"),
        ("optim.decay_groups", "x", "expected one of .*'intended'"),
        ("optim.schedule", "new", "expected one of .*'official_prefix'"),
        ("model.remat", "some", "expected one of .*'dots'"),
        ("model.attention", "flash", "expected one of .*'pallas'"),
        ("model.name", "vgg", "expected one of .*'swin_v2'"),
        ("model.drop_path_rate", 1.5, "expected 0 to 1"),
        ("mode", "train", "expected one of .*'compare'"),
        ("dtype", "float16", "expected one of .*'bfloat16'"),
        ("ema_decay", 1.0, "expected 0 up to, but not including, 1"),
        ("data.mean", (0.5, 0.5), r"one number for each of config\.data\.channels=1"),
        ("data.std", (), "expected one number for each"),
        ("data.std", (0.0,), "expected more than 0"),
        ("data.std", (-1.0,), "-1.0: expected 0 or more"),
        ("data.crop_scale", (0.5,), "smallest and largest share"),
        ("data.crop_scale", (0.5, 2.0), "2.0: expected 0 to 1"),
        ("data.num_threads", 0, "expected 1 or more, or -1"),
        ("data.eval_crop", 0.0, "expected more than 0, up to 1"),
        ("data.image_size", (0, 28), "0: expected 1 or more"),
        ("data.interpolation", "cubic", "expected one of .*'bicubic'"),
        ("data.nodata", (0.0, 255.0), "expected one value"),
        ("data.bands", ("B4", "VH"), r"as many names as config\.data\.channels=1"),
        ("data.clip", (-2.0, 2.0), r"expected \(\) with .*='standard'"),
        ("data.dtype", "int64", "expected one of .*'float32'"),
    ],
)
def test_invalid_values_raise(field, value, says):
    with pytest.raises(UserError, match=says) as error:
        parse("pretrain", **{field: value})
    shown = str(error.value)
    assert f"config.{field}=" in shown
    assert "expected" in shown


def test_values_mapped_to_8_bits_have_no_nodata():
    with pytest.raises(
        UserError, match=r'expected config\.data\.normalization="range"'
    ):
        parse("pretrain", **{"data.nodata": (-1.0,), "data.value_range": (0.0, 9.0)})


def test_a_swin_has_no_class_token():
    with pytest.raises(UserError, match=r"config\.model\.pool='cls': a Swin has no"):
        schema.parse({"mode": "finetune", "model": {"name": "swin", "pool": "cls"}})


def test_bins_need_bytes():
    fields = {"data.dtype": "float32", "loss.kind": "bins"}
    with pytest.raises(UserError, match=r"config\.loss\.kind='bins'.*dtype='uint8'"):
        parse("pretrain", **fields)


def test_messages_name_the_run_of_a_comparison():
    config = quickstart.get_config()
    config.finetune.augment.magnitude = 11.0
    with pytest.raises(UserError, match=r"^config\.finetune\.augment\.magnitude=11"):
        schema.parse(config)


# ---- Modes ---------------------------------------------------------------------------


def test_mode_decides_what_a_config_is():
    assert isinstance(parse("pretrain"), schema.Pretrain)
    assert isinstance(parse("finetune"), schema.Finetune)
    compared = schema.parse(quickstart.get_config())
    assert isinstance(compared, schema.Compare)
    assert schema.single(compared) is compared.pretrain
    assert schema.single(compared.finetune) is compared.finetune


def test_mode_of_a_comparison_s_second_part_decides_what_it_is():
    config = quickstart.get_config()
    config.finetune = tiny_config.get_config("segment")
    assert isinstance(schema.parse(config).finetune, schema.Segment)
    config.finetune.mode = "finetune"
    with pytest.raises(UserError, match=r"config\.finetune\.mode='finetune': .*is one"):
        schema.parse(config)
    config.finetune = schema.config_dict(schema.Transcribe())
    with pytest.raises(UserError, match="Expected 'finetune' or 'segment'"):
        schema.parse(config)


@pytest.mark.parametrize("mode", ["bench", "bench_input"])
def test_benchmarks_keep_the_kind_of_run(mode):
    assert isinstance(parse("pretrain", mode=mode), schema.Pretrain)
    assert isinstance(parse("finetune", mode=mode), schema.Finetune)
    config = quickstart.get_config()
    config.mode = mode
    assert isinstance(schema.parse(config), schema.Compare)


@pytest.mark.parametrize("mode", [None, "", "train"])
def test_unknown_mode_lists_the_known_ones(mode):
    fields = tiny_config.get_config("pretrain").to_dict() | {"mode": mode}
    with pytest.raises(UserError, match=r"config\.mode=.*: expected one of .*compare"):
        schema.parse(fields)


def test_mode_of_a_comparison_does_not_change():
    with pytest.raises(UserError, match="this config is no comparison"):
        parse("pretrain", mode="compare")
    config = quickstart.get_config()
    config.mode = "pretrain"
    with pytest.raises(UserError, match="this config is a comparison"):
        schema.parse(config)


# ---- The configs that come with the package ------------------------------------------

ARGUMENTS = {
    "ablations": tuple(ablations.ABLATIONS),
    "sizes": tuple(models.VARIANTS),
    "small": ("pretrain", "finetune", "linear", "compare"),
}
CONFIGS = [
    (name, argument)
    for name in arguments.config_names()
    for argument in ("", "smoke", *ARGUMENTS.get(name, ()))
]


@pytest.mark.parametrize(("name", "argument"), CONFIGS)
def test_config_parses_to_the_same_values(name, argument):
    module = importlib.import_module(f"simmim_jax.configs.{name}")
    config = module.get_config(argument)
    parsed = schema.parse(config)
    if isinstance(parsed, schema.Compare):
        parts = (parsed.pretrain, config.pretrain), (parsed.finetune, config.finetune)
    else:
        parts = ((parsed, config),)
    for typed, fields in parts:
        assert schema.to_dict(typed) == fields.to_dict()
        assert schema.parse(schema.to_dict(typed)) == typed
        flat = flatten_dict(fields.to_dict(), sep=".")
        for field, _, kind, _ in leaves(typed):
            # The command line parses values as the type that the config file gave.
            if kind in (int, float, str, bool):
                assert type(flat[field]) is kind, field


@pytest.mark.parametrize(
    ("kind", "wrong"), [("pretrain", "finetune"), ("finetune", "pretrain")]
)
def test_mode_must_be_that_of_the_config(kind, wrong):
    fields = getattr(common, kind)()
    fields.mode = wrong
    with pytest.raises(UserError, match=f"config.mode='{wrong}': this config is one"):
        schema.parse(fields)


def test_mode_alone_is_a_config_of_that_mode():
    assert schema.parse({"mode": "pretrain"}) == schema.Pretrain()
    assert schema.parse({"mode": "finetune"}) == schema.Finetune()


def test_stored_configs_may_have_fields_and_values_of_other_releases():
    fields = schema.to_dict(schema.Pretrain()) | {"notes": "mine"}
    with pytest.raises(UserError, match=r"unknown config field config\.notes"):
        schema.parse(fields)
    fields["ema_decay"] = 7.0
    parsed = schema.parse(fields, stored=True)
    assert parsed == dataclasses.replace(schema.Pretrain(), ema_decay=7.0)


# ---- Speech to text ------------------------------------------------------------------


def test_the_defaults_of_speech_to_text_are_valid():
    config = schema.Transcribe()
    assert schema.parse(schema.config_dict(config)) == config
    assert schema.parse({"mode": "bench", "beam_width": 1}).data.view == "speech"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model.patch_size": (16, 16)}, r"expected the height of config\.data\.image"),
        ({"data.image_size": (80, 2001)}, "a divisor of its width"),
        ({"model.use_abs_pos_emb": True}, "expected False in speech to text"),
        ({"model.use_shared_rel_pos_bias": True}, "pre-train with it"),
        ({"mode": "finetune"}, "this config is one of speech to text"),
    ],
)
def test_what_speech_to_text_cannot_have(fields, message):
    config = schema.config_dict(schema.Transcribe())
    config.update_from_flattened_dict(fields)
    with pytest.raises(UserError, match=message):
        schema.parse(config)


def test_speech_to_text_takes_a_vit():
    values = schema.to_dict(schema.Transcribe()) | {"model": {"name": "swin"}}
    with pytest.raises(UserError, match="expected 'vit'"):
        schema.parse(values)
