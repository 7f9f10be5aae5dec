"""Reading and dividing the recordings of benchmarks/speech_labels.py."""

import numpy as np
from sounds import encoded

from benchmarks import speech_labels
from benchmarks.speech_labels import Sentence


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def test_russian_has_no_marks_of_stress(tmp_path):
    lines = '( ru_0001 "Пр+ядь вол+ос." )\n( ru_0003 "Шаль, \u00abдруг\u00bb" )\n'
    write(tmp_path / "etc/txt.done.data", lines)
    assert speech_labels.russian(tmp_path) == [
        Sentence(tmp_path / "wav/ru_0001.wav", "Прядь волос.", "ru_0001"),
        Sentence(tmp_path / "wav/ru_0003.wav", "Шаль, «друг»", "ru_0003"),
    ]


def test_czech_has_the_dialogues_that_have_a_sound(tmp_path):
    script = """
dialogId("a", "font_small", "What (not \\"who\\")?")
dialogStr("Co?")
dialogId("silent", "font_big", "Yes.")
dialogStr("Ano.")
dialogId("b", "font_big",
"It rotates.")
dialogStr(
"Otáčí se.")
"""
    write(tmp_path / "script/ufo/dialogs_cs.lua", script)
    for name in "ab":
        write(tmp_path / f"sound/ufo/cs/{name}.ogg", b"")
    folder = tmp_path / "sound/ufo/cs"
    assert speech_labels.czech(tmp_path) == [
        Sentence(folder / "a.ogg", "Co?", "ufo"),
        Sentence(folder / "b.ogg", "Otáčí se.", "ufo"),
    ]


def test_parts_are_divided_and_texts_too(tmp_path):
    said = [Sentence(tmp_path, f"text {i % 19}", f"{i // 2}") for i in range(20)]
    learned, held_out = speech_labels.divided(said)
    assert {each.part for each in held_out} == {"0", "5"}
    assert not {each.text for each in held_out} & {each.text for each in learned}
    # The first and the last sentence say the same.
    assert len(learned) == 16
    assert len(held_out) == 3


def test_fewer_minutes_are_part_of_more(tmp_path):
    said = []
    for i in range(9):
        path = tmp_path / f"{i}.wav"
        path.write_bytes(encoded(np.zeros(16_000)))
        said.append(Sentence(path, "", f"{i}"))
    few, more = (speech_labels.some(said, n / 60, seed=1) for n in (3, 6))
    assert (len(few), len(more)) == (3, 6)
    assert more[:3] == few
    assert few != speech_labels.some(said, 3 / 60, seed=0)
    assert speech_labels.some(said, 0, seed=1) == said


def test_the_table_has_means_and_deviations():
    rates = [
        {
            "10 min": {"from scratch": {"cer": cer, "wer": 1.0}},
            "all": {"from scratch": {"cer": 0.5, "wer": 0.9}, "BiLSTM": rate},
        }
        for cer, rate in (
            (0.5, {"cer": 0.2, "wer": 0.4}),
            (0.7, {"cer": 0.2, "wer": 1}),
        )
    ]
    lines = speech_labels.table(rates).splitlines()
    assert lines[2] == "| 10 min | 60.0 ± 14.1 | 100.0 ± 0.0 |  |  |  |  |"
    assert lines[3].startswith("| all | 50.0 ± 0.0 | 90.0 ± 0.0 |")
    assert lines[3].endswith("| 20.0 ± 0.0 | 70.0 ± 42.4 |")
