"""Cards with front matter of every kind; settings without places, and with everything else."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hf_distill.hub.card import merged_cards, render, write_card
from hf_distill.hub.contents import published_files
from hf_distill.hub.front_matter import join_card, split_card

FACTS: dict[str, Any] = {
    "hf_distill_version": "0",
    "libraries": {},
    "task": "question-answering",
    "student": {"architecture": "A", "parameters": 1, "base_model": None},
    "stages": [{"settings": {}, "training": {"learning_rate": 5e-5, "epochs": 3.0, "x": 12_000.0}}],
    "scores": {},
}
WORDS = "# Mine\n\nMy words.\n"
BROKEN = {
    "no YAML": "---\ntags: [mine\n---\n" + WORDS,
    "a tab": "---\nlicense:\tmit\n\tx: 1\n---\n" + WORDS,
    "a list": "---\n- mit\n---\n" + WORDS,
    "a sentence": "---\nhello\n---\n" + WORDS,
    "an object": "---\nx: !!python/object/apply:os.getcwd []\n---\n" + WORDS,
    "an unhashable key": "---\n? [a, b]\n: c\n---\n" + WORDS,
}
UNUSUAL: dict[str, tuple[str, dict[str, Any]]] = {
    "none": (WORDS, {}),
    "empty": ("---\n---\n" + WORDS, {}),
    "a comment": ("---\n# nothing\n---\n" + WORDS, {}),
    "not closed": ("---\n" + WORDS, {}),
    "a byte order mark": ("\ufeff---\nlicense: mit\n---\n" + WORDS, {"license": "mit"}),
    "Windows": ("---\r\nlicense: mit\r\n---\r\n" + WORDS, {"license": "mit"}),
    "Norwegian": ("---\nlanguage: no\n---\n" + WORDS, {"language": "no"}),
    "languages": ("---\nlanguage: [no, en]\n---\n" + WORDS, {"language": ["no", "en"]}),
    "a date that is none": ("---\ndate: 2020-13-45\n---\n" + WORDS, {"date": "2020-13-45"}),
    "one tag": ("---\ntags: mine\n---\n" + WORDS, {"tags": ["mine"]}),
    "a tag that is a number": ("---\ntags: [7]\n---\n" + WORDS, {"tags": [7]}),
    "numbers as names": ("---\n1: a\n---\n" + WORDS, {1: "a"}),
    "names of methods": ("---\nto_dict: 1\ntext: 2\n---\n" + WORDS, {"to_dict": 1, "text": 2}),
    "results": (
        "---\nmodel-index: nonsense\neval_results: 3\n---\n" + WORDS,
        {"model-index": "nonsense", "eval_results": 3},
    ),
}


def metadata_of(card: str) -> dict[Any, Any]:
    return yaml.load(card.split("---\n")[1], yaml.SafeLoader)


@pytest.fixture(params=["run", "Hub"])
def updated(request: Any, tmp_path: Path) -> Any:
    """What a card becomes: one of a run's folder, or one that the repository has."""

    def update(card: str) -> str:
        if request.param == "run":
            (tmp_path / "README.md").write_bytes(card.encode())
            write_card(tmp_path, FACTS, title="small", license="apache-2.0")
            write_card(tmp_path, FACTS, title="small", license="apache-2.0")
            return (tmp_path / "README.md").read_text()
        ours = tmp_path / "ours"
        ours.mkdir()
        text = write_card(ours, FACTS, title="small", license="apache-2.0").read_text()
        there = card.removeprefix("\ufeff").replace("\r\n", "\n")  # as push reads it
        return merged_cards(text, merged_cards(text, there))

    return update


@pytest.mark.parametrize("kind", UNUSUAL)
def test_unusual_front_matter_stays_what_it_is(
    kind: str, updated: Any, caplog: pytest.LogCaptureFixture
) -> None:
    card, expected = UNUSUAL[kind]
    expected = dict(expected)
    result = updated(card)
    found = metadata_of(result)
    tags = expected.pop("tags", [])
    assert found["tags"] == [*tags, "hf-distill", "knowledge-distillation", "distillation"]
    assert found["license"] == expected.get("license", "apache-2.0")
    assert {name: found.get(name) for name in expected} == expected
    assert result.count("My words.") == result.count("## How it was made") == 1
    assert "cannot be read" not in caplog.text


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_front_matter_is_kept_as_text_and_named(
    kind: str, updated: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    result = updated(BROKEN[kind])
    assert BROKEN[kind].rstrip() in result
    assert metadata_of(result)["license"] == "apache-2.0"
    assert result.count("## How it was made") == 1
    warnings = [r.message for r in caplog.records if "front matter" in r.message]
    assert len(warnings) == 1 and "README.md" in warnings[0] and "kept as text" in warnings[0]


def test_a_card_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes("# Modèle".encode("latin-1"))
    with pytest.raises(ValueError, match="README.md is not UTF-8 text .* at byte 5"):
        write_card(tmp_path, FACTS, title="small")


def test_a_new_card_is_read_by_the_hubs_library(tmp_path: Path) -> None:
    facts = {**FACTS, "scores": {"f1": 81.5}, "validation_data": "dev.json"}
    card = ModelCard.load(write_card(tmp_path, facts, title="small", language="no"))
    assert (card.data.language, card.data.pipeline_tag) == ("no", "question-answering")
    assert card.data.eval_results[0].metric_value == 81.5


# Without the line breaks of other systems in the middle of a name or value, which PyYAML loses.
_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x85\u2028\u2029"), max_size=12)
_SCALARS = st.none() | st.booleans() | st.integers() | _TEXT | st.floats(allow_nan=False)
_METADATA = st.dictionaries(_TEXT, _SCALARS | st.lists(_SCALARS, max_size=3), max_size=3)


@settings(max_examples=50)
@given(_METADATA, _TEXT.filter(lambda text: not text.startswith("\n")))
@example({"language": "no", "date": "2020-01-01", "version": "1.10", "code": "010"}, "x")
def test_metadata_and_text_come_back(metadata: dict[str, Any], text: str) -> None:
    assert split_card(join_card(metadata, text)) == (metadata, text)


# ---- figures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pairs", "rows"), [
    ([[0, 0], [1, 2]], ["| layers (student ← teacher) | 0 ← 0, 1 ← 2 |"]),
    ({"encoder": [[1, 1]], "decoder": [[1, 2]]},
     ["| layers of the encoder (student ← teacher) | 1 ← 1 |",
      "| layers of the decoder (student ← teacher) | 1 ← 2 |"]),
], ids=["one stack", "two stacks"])  # fmt: skip
def test_layer_pairs_are_written_out(pairs: Any, rows: list[str], tmp_path: Path) -> None:
    stage = {"settings": {"layer_pairs": pairs}, "training": {}}
    text = render(tmp_path, {**FACTS, "stages": [stage]}, "small")
    assert all(row in text for row in rows)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (11_873, "11,873"), (11_873.0, "11,873"), (1e6, "1,000,000"), (81.46812, "81.47"),
        (100.0, "100"), (0.0, "0"), (0.0123412, "0.01234"), (23_456.7, "23,457"), (-0.5, "-0.5"),
    ],
)  # fmt: skip
def test_figures_are_written_out(value: float, shown: str, tmp_path: Path) -> None:
    text = render(tmp_path, {**FACTS, "scores": {"total": value}}, "small")
    assert f"| total | {shown} |" in text
    for name, cell in {"learning_rate": "5e-05", "epochs": "3", "x": "12000"}.items():
        assert f"| {name} | {cell} |" in text


# ---- settings ------------------------------------------------------------------------------------


def pushed(folder: Path, name: str, content: Any) -> Any:
    (folder / "model.safetensors").write_bytes(b"")
    (folder / name).write_text(json.dumps(content))
    found = published_files(folder)[name]
    return json.loads(found if isinstance(found, bytes) else found.read_text())


NAMES = ["/location/country/contains", "~/.bashrc", "./configure", "../up", "C:\\dir", "/etc", "ok"]


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer_config.json", "special_tokens_map.json"]
)
def test_names_of_labels_and_tokens_that_look_like_paths_stay(name: str, tmp_path: Path) -> None:
    content = {
        "id2label": {str(i): label for i, label in enumerate(NAMES)},
        "label2id": {label: i for i, label in enumerate(NAMES)},
        "added_tokens_decoder": {"5": {"content": NAMES[0], "special": True}},
        "extra_special_tokens": NAMES,
        "bos_token": NAMES[2],
        "task_specific_params": {"prefix": NAMES[3]},
    }
    assert pushed(tmp_path, name, content) == content


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        ("/home/someone/teacher", "teacher"),
        ("~/private/teacher", "teacher"),
        ("./runs/teacher", "teacher"),
        ("../runs/teacher", "teacher"),
        ("runs/client/teacher", "teacher"),
        ("here/teacher", "teacher"),
        ("C:\\Users\\someone\\teacher", "teacher"),
        ("runs\\client\\teacher", "teacher"),
        ("org/teacher", "org/teacher"),
        ("teacher", "teacher"),
    ],
)
def test_places_become_names(
    place: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "teacher").mkdir(parents=True)
    names = ("_name_or_path", "name_or_path", "base_model_name_or_path", "tokenizer_file",
             "cache_dir", "pretrained_path")  # fmt: skip
    content: dict[str, Any] = {name: place for name in names}
    content |= {
        "text_config": {"_name_or_path": place},
        "adapter_path": [place],
        "merges_file": None,
    }
    expected: dict[str, Any] = {name: shown for name in names}
    expected |= {"text_config": {"_name_or_path": shown}, "adapter_path": [shown]}
    assert pushed(tmp_path, "config.json", content) == {**expected, "merges_file": None}
