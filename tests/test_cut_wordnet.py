"""scripts/cut_wordnet.py on a few meanings."""

import gzip
import runpy
from pathlib import Path

from simmim_jax.data.sources import text
from simmim_jax.data.sources.registry import open_source

SCRIPT = Path(__file__).parents[1] / "scripts" / "cut_wordnet.py"
# As in wordnet-base 3.0-37: two spaces before lines of the licence and after
# definitions, and spaces before some tabs of the manual.
MANUAL = ".TP\n05\tnoun.animal\tnouns denoting animals\n18\tnoun.person  \tpeople\n"
MEANING = "00001740 {} n 01 word 0 000 | {}  \n"


def test_definitions_have_topics_and_one_split_each(tmp_path):
    (tmp_path / "man" / "man5").mkdir(parents=True)
    manual = tmp_path / "man" / "man5" / "lexnames.5WN.gz"
    manual.write_bytes(gzip.compress(MANUAL.encode()))
    (tmp_path / "wordnet").mkdir()
    animals = [f'an animal; "number {i}"' for i in range(200)]
    people = [*(f"a person, {i} | so" for i in range(100)), animals[0]]
    for part, topic, definitions in (
        ("noun", "05", animals),
        ("verb", "18", people),
        ("adj", "18", []),
        ("adv", "18", []),
    ):
        lines = [
            "  1 This software\n",
            *(MEANING.format(topic, d) for d in definitions),
        ]
        (tmp_path / "wordnet" / f"data.{part}").write_text("".join(lines))

    runpy.run_path(str(SCRIPT))["cut_wordnet"](tmp_path, tmp_path / "topics.csv")

    splits = [
        open_source(str(tmp_path / "topics.csv"), split, formats=text.FORMATS)
        for split in ("train", "validation")
    ]
    found = {}
    for source in splits:
        assert source.class_names == ("noun.animal", "noun.person")
        found |= {e["image"]: source.class_names[e["label"]] for e in source}
    assert sum(map(len, splits)) == len(found) == 300
    assert 15 < len(splits[1]) < 45
    assert found == dict.fromkeys(animals, "noun.animal") | dict.fromkeys(
        people[:-1], "noun.person"
    )
