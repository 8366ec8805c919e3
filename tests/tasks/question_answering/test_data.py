"""Loading: every layout, and an error that can be acted upon for everything else."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, List, Value
from squad_documents import CONTEXT, answer, german, v1, v2, write

from hf_distill.tasks.question_answering import (
    QuestionAnsweringDataError,
    data,
    is_v2,
    load_question_answering_dataset,
    validate_answers,
)

SQUAD = Path(__file__).resolve().parents[4] / "shared" / "data" / "squad"
ROWS = [
    {
        "id": "a",
        "title": "Wien",
        "context": CONTEXT,
        "question": "Wo?",
        "answers": {"text": ["an der Donau"], "answer_start": [CONTEXT.index("an der")]},
    },
    {
        "id": "b",
        "title": "Wien",
        "context": CONTEXT,
        "question": "Wie groß?",
        "answers": {"text": ["1,5 km²", "1,5"], "answer_start": [CONTEXT.index("1,5")] * 2},
    },
]


@pytest.mark.parametrize("name", ["squad.json", "squad.json.gz", "SQUAD.JSON"])
def test_v1(tmp_path: Path, name: str) -> None:
    rows = load_question_answering_dataset(write(tmp_path / name, v1()))
    assert rows.to_list() == ROWS
    assert not is_v2(rows)


def test_v2_leaves_plausible_answers_out(tmp_path: Path) -> None:
    rows = load_question_answering_dataset(write(tmp_path / "v2.json", v2()))
    assert rows["id"][:] == ["a", "b", "c", "d"]
    assert rows[2]["answers"] == rows[3]["answers"] == {"text": [], "answer_start": []}
    assert is_v2(rows)


def test_german_quad_has_numbers_as_ids_and_no_title(tmp_path: Path) -> None:
    rows = load_question_answering_dataset(write(tmp_path / "train.json", german()))
    assert rows["id"][:] == ["50319", "50320"]
    assert set(rows["title"]) == {""}
    assert rows.remove_columns(["id", "title"]).to_list() == [
        {name: row[name] for name in ("context", "question", "answers")} for row in ROWS
    ]


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", v1())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(load_question_answering_dataset(path)) == 2


@pytest.mark.parametrize("ids", [["a", "b"], [1, 2]])
@pytest.mark.parametrize(
    "kind", ["jsonl", "jsonl.gz", "json", "list", "parquet", "folder", "folder of splits", "hub"]
)
def test_tables(tmp_path: Path, monkeypatch, kind: str, ids: list[Any]) -> None:
    columns = {name: [row[name] for row in ROWS] for name in ROWS[0] if name != "title"}
    table = Dataset.from_dict({**columns, "id": ids, "extra": [1, 2]})
    options: dict[str, Any] = {}
    if kind in ("jsonl", "jsonl.gz", "json", "list"):
        source = str(tmp_path / f"rows.{kind.replace('list', 'json')}")
        compression = "gzip" if kind.endswith("gz") else None
        lines = kind != "list"
        table.to_json(source, force_ascii=False, compression=compression, lines=lines)
    elif kind == "parquet":
        source = str(tmp_path / "rows.parquet")
        table.to_parquet(source)
    elif kind == "folder":
        source = str(tmp_path / "saved")
        table.save_to_disk(source)
    elif kind == "folder of splits":
        source, options = str(tmp_path / "saved"), {"split": "test"}
        DatasetDict(train=table.select([0]), test=table).save_to_disk(source)
    else:
        source, options = "deepset/germanquad", {"split": "test", "config_name": "plain_text"}
        seen = {}

        def load_dataset(path: str, **given: Any) -> Dataset:
            seen.update(given, path=path)
            return table

        monkeypatch.setattr("hf_distill.tasks.tables.load_dataset", load_dataset)
    rows = load_question_answering_dataset(source, **options)
    assert rows["id"][:] == [str(name) for name in ids]
    assert rows["answers"][:] == [row["answers"] for row in ROWS]
    assert rows.features == data.FEATURES
    if kind == "hub":
        assert seen == {
            "path": source,
            "name": "plain_text",
            "split": "test",
            "revision": None,
        }


def test_answers_as_a_list_of_objects(tmp_path: Path) -> None:
    table = Dataset.from_list([{**row, "answers": [answer("Donau")]} for row in ROWS])
    assert isinstance(table.features["answers"], List)
    table.save_to_disk(tmp_path / "saved")
    rows = load_question_answering_dataset(tmp_path / "saved")
    assert rows[0]["answers"] == {"text": ["Donau"], "answer_start": [CONTEXT.index("Donau")]}


def questions(document: dict[str, Any]) -> list[dict[str, Any]]:
    return document["data"][0]["paragraphs"][0]["qas"]


def set_at(document: dict[str, Any], path: str, value: Any) -> None:
    *way, last = re.findall(r"\w+", path)
    for step in way:
        document = document[int(step) if step.isdigit() else step]
    if value is ...:
        del document[last]
    else:
        document[int(last) if last.isdigit() else last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("data[0].title", 5, "data[0].title must be str, not int 5"),
        ("data[0].paragraphs", ..., "data[0] has no field 'paragraphs'; it has 'title'"),
        ("data[0].paragraphs", {}, "data[0].paragraphs must be list, not dict {}"),
        ("data[0].paragraphs[0]", "x", "data[0].paragraphs[0] must be an object, not 'x'"),
        ("data[0].paragraphs[0].context", ..., "data[0].paragraphs[0] has no field 'context'"),
        ("data[0].paragraphs[0].qas", ..., "data[0].paragraphs[0] has no field 'qas'"),
        ("data[0].paragraphs[0].qas[1].id", ..., "data[0].paragraphs[0].qas[1] has no field 'id'"),
        ("data[0].paragraphs[0].qas[1].id", None, "qas[1].id must be str or int, not NoneType"),
        ("data[0].paragraphs[0].qas[1].id", True, "qas[1].id must be str or int, not bool True"),
        ("data[0].paragraphs[0].qas[1].question", ..., "qas[1] has no field 'question'"),
        ("data[0].paragraphs[0].qas[1].answers", ..., "qas[1] has no field 'answers'"),
        ("data[0].paragraphs[0].qas[1].answers[0].text", ..., "answers[0] has no field 'text'"),
        ("data[0].paragraphs[0].qas[1].answers[0].text", " ", "answers[0].text is blank (' ')"),
        ("data[0].paragraphs[0].qas[1].answers[0].text", "\u200b", "answers[0].text is blank"),
        (
            "data[0].paragraphs[0].qas[1].answers[1].answer_start",
            "18",
            "data[0].paragraphs[0].qas[1].answers[1].answer_start must be int, not '18'",
        ),
        (
            "data[0].paragraphs[0].qas[1].is_impossible",
            True,
            "data[0].paragraphs[0].qas[1] (id 'b') has is_impossible=true and 2 answers",
        ),
        ("data[0].paragraphs[0].qas[1].is_impossible", "no", "is_impossible must be bool"),
        (
            "data[0].paragraphs[0].qas[1].id",
            "a",
            "the id 'a' of data[0].paragraphs[0].qas[1] is also that of "
            "data[0].paragraphs[0].qas[0]",
        ),
        ("data", [], "is empty: it has no question"),
        ("data", {}, "the document.data must be list"),
        ("data", ..., "not in the layout of SQuAD"),
    ],
)
def test_a_faulty_record_is_named(tmp_path: Path, path: str, value: Any, message: str) -> None:
    document = v1()
    set_at(document, path, value)
    file = write(tmp_path / "faulty.json", document)
    with pytest.raises(QuestionAnsweringDataError, match=re.escape(message)) as caught:
        load_question_answering_dataset(file)
    assert str(file) in str(caught.value)


def test_is_impossible_false_without_answers_is_refused(tmp_path: Path) -> None:
    document = v2()
    questions(document)[2]["is_impossible"] = False
    with pytest.raises(QuestionAnsweringDataError, match="is_impossible=false and 0 answers"):
        load_question_answering_dataset(write(tmp_path / "a.json", document))


@pytest.mark.parametrize(
    ("text", "start", "message"),
    [
        ("Donau", 3, "expected 'Donau' at answer_start=3 but found '.*'"),
        ("Donau", 9**6, "expected 'Donau' at answer_start=531441 but found ''"),
        ("Donau", -6, "answer_start=-6 of 'Donau' is negative"),
        (CONTEXT[:4], -len(CONTEXT), rf"answer_start=-{len(CONTEXT)} of '.*' is negative"),
    ],
)
def test_misplaced_answers_are_named_and_counted(
    tmp_path: Path, text: str, start: int, message: str
) -> None:
    document = v2()
    questions(document)[0]["answers"] = [answer("Wien"), {"text": text, "answer_start": start}]
    questions(document)[1]["answers"][0]["answer_start"] = 0
    expected = (
        rf"data\[0\]\.paragraphs\[0\]\.qas\[0\] \(id 'a'\): {message}\. "
        "Answers do not match their context in 2 of 4 rows"
    )
    with pytest.raises(QuestionAnsweringDataError, match=expected):
        load_question_answering_dataset(write(tmp_path / "a.json", document))


def test_offsets_count_characters_not_bytes(tmp_path: Path) -> None:
    document = v1()
    start = len(CONTEXT[: CONTEXT.index("Donau")].encode())
    questions(document)[0]["answers"] = [{"text": "Donau", "answer_start": start}]
    with pytest.raises(QuestionAnsweringDataError, match="but found ''"):
        load_question_answering_dataset(write(tmp_path / "a.json", document))


def test_malformed_json_names_the_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", v1())
    lines = path.read_text("utf-8").splitlines()
    path.write_text("\n".join([*lines[:6], "}", *lines[6:]]), encoding="utf-8")
    with pytest.raises(QuestionAnsweringDataError, match=rf"{path}: line 7, column 1: malformed"):
        load_question_answering_dataset(path)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.999])
def test_truncated_json_says_so(tmp_path: Path, share: float) -> None:
    path = write(tmp_path / "a.json", v1())
    text = path.read_text("utf-8")[: int(share * len(json.dumps(v1(), indent=1)) * 0.9)]
    path.write_text(text, encoding="utf-8")
    with pytest.raises(QuestionAnsweringDataError, match=r"line \d+, column \d+.*truncated\?"):
        load_question_answering_dataset(path)


@pytest.mark.parametrize("content", ["gz cut", "gz flipped", "not gz", "not utf-8", "nothing"])
def test_files_that_are_no_json(tmp_path: Path, content: str) -> None:
    packed = gzip.compress(json.dumps(v1()).encode())
    name, content, message = {
        "gz cut": ("a.json.gz", packed[:-20], "the gzip file is truncated"),
        "gz flipped": ("a.json.gz", packed[:60] + b"\xff" * 9 + packed[69:], "not a sound gzip"),
        "not gz": ("a.json.gz", json.dumps(v1()).encode(), "not a sound gzip file"),
        "not utf-8": ("a.json", '{\n"data": "é"}'.encode("latin-1"), "line 2 is not text in UTF-8"),
        "nothing": ("a.json", b" \n", "the file is empty"),
    }[content]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(QuestionAnsweringDataError, match=message) as caught:
        load_question_answering_dataset(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "3", '"data"', "{}", '{"data": 3}', "[" * 100_000])
def test_json_that_is_no_data_set(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(QuestionAnsweringDataError, match=re.escape(str(path))):
        load_question_answering_dataset(path)


def test_places_without_a_data_set(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("Wien")
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 not really")
    (tmp_path / "rows.jsonl").write_text('{"id": "a"\n')
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "state.json").write_text("{}")
    for path, message in (
        (tmp_path / "notes.txt", "is not a question-answering data set: the name must end in"),
        (tmp_path / "rows.parquet", "cannot be read"),
        (tmp_path / "rows.jsonl", "cannot be read"),
        (tmp_path, "holds no data set"),
        (broken, "cannot be read"),
    ):
        with pytest.raises(QuestionAnsweringDataError, match=message) as caught:
            load_question_answering_dataset(path)
        assert str(path) in str(caught.value)
    for missing in (tmp_path / "absent.json", "absent.json", "../a/b", "a/b/c", "data.jsonl"):
        with pytest.raises(FileNotFoundError, match=re.escape(f"{str(missing)!r}")):
            load_question_answering_dataset(missing)


def test_options_that_do_not_fit_the_source(tmp_path: Path, monkeypatch) -> None:
    file = write(tmp_path / "a.json", v1())
    table = load_question_answering_dataset(file)
    table.save_to_disk(tmp_path / "one")
    DatasetDict(train=table, test=table).save_to_disk(tmp_path / "two")
    for source, options, message in (
        (file, {"split": "train"}, "is a file and has no splits; leave out split='train'"),
        (file, {"revision": "main"}, "revision='main' are for data sets on the Hub"),
        (tmp_path / "one", {"config_name": "x"}, "config_name='x'"),
        (tmp_path / "one", {"split": "train"}, "has no splits; leave out split='train'"),
        (tmp_path / "two", {}, r"has the splits \['test', 'train'\]; choose one"),
        (tmp_path / "two", {"split": "dev"}, r"split='dev' is not in .*\['test', 'train'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            load_question_answering_dataset(source, **options)

    def script(*args: Any, **options: Any) -> None:
        raise RuntimeError("Dataset scripts are no longer supported, but found germanquad.py")

    monkeypatch.setattr("hf_distill.tasks.tables.load_dataset", script)
    with pytest.raises(ValueError, match="revision='refs/convert/parquet'"):
        load_question_answering_dataset("deepset/germanquad")


def test_validate_answers_checks_any_data_set() -> None:
    validate_answers(Dataset.from_list(ROWS))
    shifted = [{**row, "answers": {**row["answers"]}} for row in ROWS]
    shifted[1]["answers"]["answer_start"] = [CONTEXT.index("1,5"), 0]
    for rows, message in (
        (shifted, r"row 1 \(id 'b'\): expected '1,5' at answer_start=0 but found 'Die'"),
        ([ROWS[0], ROWS[0]], "the id 'a' of row 1 is also that of row 0"),
        ([{**ROWS[0], "context": 3}], "row 0.context must be str, not int 3"),
        ([{**ROWS[0], "context": None}], "row 0.context must be str, not NoneType None"),
        ([{"id": "a", "text": "x"}], "no column context, question, answers; it has id, text"),
        ([{**ROWS[0], "answers": {"text": ["Wien"], "answer_start": []}}], "has 1 text and 0"),
        ([{**ROWS[0], "answers": None}, ROWS[1]], "row 0.answers is null.*has an empty list"),
    ):
        with pytest.raises(QuestionAnsweringDataError, match=message):
            validate_answers(Dataset.from_list(rows))
    with pytest.raises(QuestionAnsweringDataError, match="is empty"):
        validate_answers(Dataset.from_list(ROWS).select([]))


def flat() -> dict[str, Any]:
    """The rows of the Hub's layout, as `run_qa.py` reads them with `field="data"`."""
    return {"version": "1.1", "data": [{**row, "title": "Wien"} for row in ROWS]}


def test_rows_of_the_hub_in_a_json_file(tmp_path: Path) -> None:
    found = load_question_answering_dataset(write(tmp_path / "flat.json", flat()))
    assert found.to_list() == [{**row, "title": "Wien"} for row in ROWS]
    document = flat()
    document["data"][1]["answers"] = [answer("Donau")]
    document["data"][0] |= {"answers": None, "is_impossible": True}
    found = load_question_answering_dataset(write(tmp_path / "flat.json", document))
    assert found["answers"][0] == {"text": [], "answer_start": []}
    assert found["answers"][1]["text"] == ["Donau"]
    document["data"][1] |= {"is_impossible": True}
    for row, message in (
        ({"is_impossible": True}, r"data\[1\] \(id 'b'\) has is_impossible=true and 1"),
        ({"is_impossible": False, "answers": None}, r"data\[1\].answers is null"),
        ({"answers": {"text": ["Wien"], "answer_start": [0]}}, "expected 'Wien'.*found 'Die"),
        ({"question": None}, r"data\[1\].question must be str"),
    ):
        document["data"][1] = {**flat()["data"][1], "answers": [answer("Donau")], **row}
        with pytest.raises(QuestionAnsweringDataError, match=message):
            load_question_answering_dataset(write(tmp_path / "flat.json", document))


HALF = "\ud83d"


@pytest.mark.parametrize("name", ["d.jsonl", "d.parquet"])
def test_rows_that_contradict_is_impossible(name: str, tmp_path: Path) -> None:
    def load(**row: Any) -> Dataset:
        whole = {"id": "a", "context": "The cat sat.", "question": "Who?", **row}
        if name == "d.parquet":
            Dataset.from_list([whole]).to_parquet(tmp_path / name)
        else:
            (tmp_path / name).write_text(json.dumps(whole))
        return load_question_answering_dataset(tmp_path / name)

    cat = {"text": ["cat"], "answer_start": [4]}
    none: dict[str, list[Any]] = {"text": [], "answer_start": []}
    for impossible in (False, None):
        assert load(answers=cat, is_impossible=impossible)["answers"][:] == [cat]
    assert load(answers=none, is_impossible=True)["answers"][:] == [none]
    with pytest.raises(QuestionAnsweringDataError, match="row 0 .id 'a'. has is_impossible=true"):
        load(answers=cat, is_impossible=True)
    with pytest.raises(QuestionAnsweringDataError, match="is_impossible=false and 0 answers"):
        load(answers=none, is_impossible=False)


@pytest.mark.parametrize("name", ["id", "title", "context", "question", "text"])
def test_half_a_character_is_refused_by_its_record(tmp_path: Path, name: str) -> None:
    row = {**ROWS[1], "title": ""}
    if name == "text":
        row["context"] = f"Wien {HALF}"
        row["answers"] = {"text": [HALF], "answer_start": [5]}
    else:
        row[name] = f"{row[name]}{HALF}"
    (tmp_path / "a.json").write_text(json.dumps({"data": [ROWS[0], row]}))
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, [ROWS[0], row])))
    place = rf"data\[1\] \(id {re.escape(repr(row['id']))}\): the {name.replace('text', '')}"
    for file, message in (("a.json", place), ("a.jsonl", "row 2 holds")):
        with pytest.raises(
            QuestionAnsweringDataError, match=rf"{message}.*half a character"
        ) as caught:
            load_question_answering_dataset(tmp_path / file)
        assert r"'\ud83d'" in str(caught.value)
        str(caught.value).encode()


def test_arrow_text_that_is_not_utf8_is_refused_by_its_row(tmp_path: Path) -> None:
    table = Dataset.from_list(ROWS).data.table
    texts = pa.array([row["context"].encode() for row in ROWS[:-1]] + [b"Wien \xed\xa0\xbd"])
    broken = pa.Array.from_buffers(pa.string(), len(texts), texts.buffers())
    table = table.set_column(table.column_names.index("context"), "context", broken)
    pq.write_table(table, tmp_path / "a.parquet")
    Dataset(table).save_to_disk(tmp_path / "saved")
    for source in ("a.parquet", "saved"):
        with pytest.raises(QuestionAnsweringDataError, match="'context' holds.* index 1, .*row 0"):
            load_question_answering_dataset(tmp_path / source)


def test_text_in_json_lines_that_looks_like_a_date(tmp_path: Path) -> None:
    rows = [{**row, "id": f"2024-01-0{n}", "question": "2024-01-05"} for n, row in enumerate(ROWS)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = load_question_answering_dataset(tmp_path / "a.jsonl")
    assert found["id"][:] == ["2024-01-00", "2024-01-01"]
    assert found["question"][:] == ["2024-01-05"] * 2


@pytest.mark.skipif(not SQUAD.is_dir(), reason="needs ../shared/data/squad")
@pytest.mark.parametrize(
    ("name", "questions", "unanswerable"),
    [
        ("train-v1.1", 11_691, 0),
        ("validation-v1.1", 1_095, 0),
        ("train-v2.0", 6_312, 3_205),
        ("validation-v2.0", 2_202, 1_108),
    ],
)
def test_all_of_shared_squad(name: str, questions: int, unanswerable: int) -> None:
    rows = load_question_answering_dataset(SQUAD / f"{name}.json.gz")
    assert len(rows) == questions
    assert sum(not answers["text"] for answers in rows["answers"]) == unanswerable
    assert is_v2(rows) == (unanswerable > 0)
    # the types of the Hub's squad, so that the two can be concatenated
    assert rows.features["id"] == Value("string")
    assert rows.features["answers"]["answer_start"] == List(Value("int32"))
