from __future__ import annotations

import csv
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from any_task import any_task
from datasets import Dataset, DatasetDict, Value

from hf_distill.augmentation.tables import write_table
from hf_distill.tasks import create_task
from hf_distill.tasks.columns import describe
from hf_distill.tasks.errors import TaskDataError
from hf_distill.tasks.options import TaskArguments
from hf_distill.tasks.tables import load_table
from hf_distill.tasks.text_classification import data_problem_type

ROWS = {"text": ["a, b", "c"], "label": [1, 0]}
CELLS = {"text": ["a, b", "c"], "label": ["1", "0"]}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.csv", 'text,label\n"a, b",1\nc,0\n'),
        ("d.csv", '\ufefftext,label\r\n"a, b",1\r\n"c",0\r\n'),
        ("d.tsv", "text\tlabel\na, b\t1\nc\t0\n"),
        ("d.jsonl", '{"text": "a, b", "label": 1}\n{"text": "c", "label": 0}\n'),
        ("d.json", '[{"text": "a, b", "label": 1}, {"text": "c", "label": 0}]'),
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_files(name: str, content: str, compressed: bool, tmp_path: Path) -> None:
    path = tmp_path / (name + ".gz" * compressed)
    data = content.encode()
    path.write_bytes(gzip.compress(data) if compressed else data)
    assert load_table(path).to_dict() == (ROWS if "json" in name else CELLS)


def test_saved_data(tmp_path: Path) -> None:
    table = Dataset.from_dict(ROWS)
    table.to_parquet(tmp_path / "d.parquet")
    table.save_to_disk(tmp_path / "one")
    DatasetDict({"dev": table, "train": table.select([1])}).save_to_disk(tmp_path / "two")
    for source in ("d.parquet", "one"):
        assert load_table(tmp_path / source).to_dict() == ROWS
    assert load_table(tmp_path / "two", split="dev").to_dict() == ROWS
    with pytest.raises(ValueError, match=r"splits \['dev', 'train'\]"):
        load_table(tmp_path / "two")


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        # A quote that cannot enclose a cell: all are letters.
        ('text\tlabel\n" open\t1\n"both"\t0\n', ['" open', '"both"']),
        ('text\tlabel\n5" disk\t1\n"say ""hi"""\t0\n', ['5" disk', '"say ""hi"""']),
        ('te"xt\tlabel\n"a ""b"""\t1\n', ['"a ""b"""']),
        # Rows of equal length only where they are letters, or only where they are not.
        ('text\tlabel\n"a\t1\nb"\t0\nc\t"2\n"d"\t3\n', ['"a', 'b"', "c", '"d"']),
        ('text\tlabel\n"a\tb"\t1\n"c"\t0\n', ["a\tb", "c"]),
        ('text\tlabel\n"two\r\n""lines"""\t1\r\n"c"\t0', ['two\r\n"lines"', "c"]),
        # Quoted names, or no quotes without need: pandas and the module csv.
        ('"text"\t"label"\n"both"\t"1"\n', ["both"]),
        ('"text"\tlabel\n"say ""hi"""\t1\n', ['say "hi"']),
        ('text\tlabel\n"say ""hi"""\t1\nx\t0\n', ['say "hi"', "x"]),
        ('text\n"say ""hi"""\n""\n', ['say "hi"', ""]),
    ],
)
def test_quotes_in_tables_with_tabs(content: str, texts: list[str], tmp_path: Path) -> None:
    path = tmp_path / "d.tsv"
    path.write_text(content, newline="")
    table = load_table(path)
    assert table[table.column_names[0]][:] == texts


@pytest.mark.parametrize(
    ("content", "row", "cell"),
    [
        ('text\tlabel\nx\t1\n"both"\t0\n', 1, "both"),
        ('text\tlabel\n"a ""b"""\t1\n""\t0\n', 1, ""),
        ('text\tlabel\n"Hello\t1\nbye"\t0\n', 0, "Hello"),
        ('text\n"a\nb"\n', 0, "a"),
    ],
)
def test_quotes_that_may_be_letters_are_refused(
    content: str, row: int, cell: str, tmp_path: Path
) -> None:
    path = tmp_path / "d.tsv"
    path.write_text(content)
    with pytest.raises(TaskDataError, match=rf"d\.tsv.*row {row}\b.*{cell}.*\.jsonl"):
        load_table(path)


@pytest.mark.parametrize("quoting", [csv.QUOTE_ALL, csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC])
def test_what_pandas_writes_with_tabs(quoting: int, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    columns = {"text": ['say "hi"', "a\tb", "", "two\nlines", "plain"], "n": [0, 1, 2, 3, 4]}
    pandas.DataFrame(columns).to_csv(tmp_path / "d.tsv", sep="\t", index=False, quoting=quoting)
    table = load_table(tmp_path / "d.tsv")
    assert table[:] == {"text": columns["text"], "n": list(map(str, columns["n"]))}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('text,label\n"open,pos\nb,neg\n"c" d,pos\n', "line 2: the quote before 'open,pos"),
        ('text,label\na,"pos\nb,neg\n', "line 2: the quote before 'pos"),
        ('text,label\n"a\nb",pos\r"c" d",pos\ne,"n\n"x', "line 5: the quote before 'n"),
    ],
)
def test_a_stray_quote_never_swallows_rows(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text(content, newline="")
    with pytest.raises(TaskDataError, match=message):
        load_table(path)


@pytest.mark.parametrize("separator", [",", "\t"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    "cell",
    [
        r'"hip \"quoted\" "',
        r'"say \"hi\""',
        r'"\"hi\", he said"',
        r'"5\" disk"',
        r'"ends with \""',
        '"one \\", two, \\"\tthree\\" "',
        '"one\n \\"two\\"\nthree"',
        '"one \\"\n \\"two"',
    ],
)
def test_quotes_after_backslashes_are_refused(
    cell: str, compressed: bool, separator: str, tmp_path: Path
) -> None:
    """The line and the remedy are named."""
    rows = [("text", "label"), ("plain", "1"), (cell, "0"), ('"other"', "1")]
    content = "".join(f"{separator.join(row)}\n" for row in rows).encode()
    path = tmp_path / (("d.csv" if separator == "," else "d.tsv") + ".gz" * compressed)
    path.write_bytes(gzip.compress(content) if compressed else content)
    with pytest.raises(TaskDataError, match=r'line 3: the quotes .* as \\"; .* twice, ""'):
        load_table(path)


@pytest.mark.parametrize("separator", [",", "\t"])
def test_backslashes_at_the_end_of_cells_are_letters(separator: str, tmp_path: Path) -> None:
    path = tmp_path / ("d.csv" if separator == "," else "d.tsv")
    rows = [
        (r'"C:\dir\"', "0"),
        ('"C:\\\\"', "1"),
        ('"a\\"', f'"{separator}b"'),
        (r'"say \""hi\"" "', "1"),
        ('""', "2"),
        (r'"D:\"', "3"),
    ]
    content = "".join(f"{separator.join(row)}\n" for row in [('"text"', '"label"'), *rows])
    path.write_text(content)
    table = load_table(path)
    assert table["text"][:] == ["C:\\dir\\", "C:\\\\", "a\\", r"say \"hi\" ", "", "D:\\"]
    assert table["label"][2] == f"{separator}b"


def test_backslashes_before_quotes_that_are_letters(tmp_path: Path) -> None:
    loose = [r"5\" disk", r'"open\" quote', r'say "C:\" or "D:\"']
    for separator, ending in ((",", "csv"), ("\t", "tsv")):
        path = tmp_path / f"d.{ending}"
        texts = loose if ending == "tsv" else loose[::2]
        path.write_text("".join(f"{text}{separator}1\n" for text in ["text", *texts]))
        assert load_table(path)["text"][:] == texts


def test_quotes_that_leave_the_rows_apart_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text('text,label\n"Great" movie,pos\na "b" c,neg\n"two\n""lines""",pos\n"",neg\n')
    assert load_table(path)["label"][:] == ["pos", "neg", "pos", "neg"]
    assert load_table(path)["text"][1:] == ['a "b" c', 'two\n"lines"', ""]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.csv", "text;label\na;pos\n"),
        ("d.csv", "text\tlabel\na\tb\n"),
        ("d.tsv", "text,label\na,b\n"),
        ("d.csv", "text;label\na, b;pos\n"),
        ("d.csv", 'text;label\n"a, b";pos\n'),
    ],
)
def test_another_separator_is_named(name: str, content: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content)
    separator = next(repr(one) for one in ";\t," if one in content)
    with pytest.raises(TaskDataError, match="single column 'text") as raised:
        load_table(path)
    assert f"in which {separator} seems" in str(raised.value)


@pytest.mark.parametrize(
    ("name", "content", "remedy"),
    [
        ("d.csv", "text,label\na,1\n'b, c',0\n", "double quotes around each cell .* a comma"),
        ("d.tsv", "text\tlabel\na\t1\nb\tc\t0\n", "double quotes around each cell .* a tab"),
        ("d.csv", "text,label\na,1\nb\n", "write a separator for each cell that is empty"),
    ],
)
def test_rows_of_unequal_length_name_a_remedy(
    name: str, content: str, remedy: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(TaskDataError, match=f"line 3 does not have the 2 cells.*; .*{remedy}"):
        load_table(path)


@pytest.mark.parametrize("name", ["d.csv", "d.tsv", "d.json", "d.jsonl"])
def test_a_file_of_empty_lines_is_empty(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("\n\n")
    with pytest.raises(TaskDataError, match="is empty: it has no rows"):
        load_table(tmp_path / name)


def test_parquet_of_string_views_and_categories(tmp_path: Path) -> None:
    words = pa.array(["p", "n", "p"])
    columns = {"text": words.cast(pa.string_view()), "label": words.dictionary_encode()}
    pq.write_table(pa.table(columns), tmp_path / "d.parquet")
    table = load_table(tmp_path / "d.parquet")
    assert table.features == {"text": Value("string"), "label": Value("string")}
    assert table.to_dict() == {"text": ["p", "n", "p"], "label": ["p", "n", "p"]}


@pytest.mark.parametrize("name", ["d.csv", "d.json", "d.parquet", "d.txt", "d.txt.gz"])
def test_another_file_with_the_same_path_and_time_is_read_again(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    for texts in (["old", "rows", "only"], ["new", "rows"]):
        lines = "\n".join([*(["text"] if name == "d.csv" else []), *texts]).encode()
        if name == "d.parquet":
            Dataset.from_dict({"text": texts}).to_parquet(path)
        elif name == "d.json":
            path.write_text(json.dumps([{"text": text} for text in texts]))
        else:
            path.write_bytes(gzip.compress(lines) if name.endswith(".gz") else lines)
        os.utime(path, (1e9, 1e9))
        assert load_table(path)["text"][:] == texts


def test_words_that_look_like_something_else_stay_words(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text('text,label\n"two\nlines",None\n2024-01-01,n/a\n')
    assert load_table(path).to_dict() == {
        "text": ["two\nlines", "2024-01-01"], "label": ["None", "n/a"],
    }  # fmt: skip
    path.write_text("text,label\n2024-01-01,2024-02-01\n")
    assert load_table(path)["text"][:] == ["2024-01-01"]


def test_line_breaks_of_a_text_file_belong_to_texts_of_language_models(tmp_path: Path) -> None:
    path = tmp_path / "d.txt.gz"
    path.write_bytes(gzip.compress("one\r\n\r\nt\u2028wo ".encode()))
    kept = ["one\n", "\n", "t\u2028wo "]
    assert load_table(path, keep_line_breaks=True)["text"][:] == kept
    assert load_table(path)["text"][:] == ["one", "", "t\u2028wo "]
    for name, texts in {
        "text-classification": ["one", "", "t\u2028wo "],
        "summarization": ["one", "", "t\u2028wo "],
        "text-generation": ["".join(kept)],
        "fill-mask": ["".join(kept)],
    }.items():
        assert any_task(name).load_data(str(path), labelled=False)["text"][:] == texts


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["d.csv", "d.tsv", "d.jsonl", "d.json", "d.txt", "d.conll"])
def test_byte_order_marks(name: str, encoding: str, tmp_path: Path) -> None:
    contents = {
        "d.csv": "text,label\né,1\n",
        "d.tsv": "text\tlabel\né\t1\n",
        "d.jsonl": '{"text": "é", "label": "1"}',
        "d.json": '[{"text": "é", "label": "1"}]',
        "d.txt": "é\nb",
        "d.conll": "é\tO\n",
    }
    mark = "\ufeff" * encoding.endswith("-be")
    (tmp_path / name).write_bytes((mark + contents[name]).encode(encoding))
    expected: dict[str, list] = {"text": ["é"], "label": ["1"]}
    if name == "d.txt":
        expected = {"text": ["é", "b"]}
    elif name == "d.conll":
        expected = {"tokens": [["é"]], "tags": [["O"]]}
    assert load_table(tmp_path / name).to_dict() == expected


@pytest.mark.parametrize(
    ("name", "content", "fragments"),
    [
        ("d.csv", "text,label\na,b\n\xe9,b\n".encode("latin-1"), ("line 3", "UTF-8", "save")),
        ("d.csv", "text,label\na,b\n".encode("utf-16-le"), ("UTF-16 without", "UTF-8")),
        ("d.csv", b"text,label\n" + b"a,b\n" * 99 + b"a\0,b\n", ("line 101", "NUL")),
        ("d.txt", "some text\n".encode("utf-16-le"), ("line 1 ", "UTF-16 without", "UTF-8")),
        ("d.jsonl", b'{"text": "a"}\n{"text": "a", "text": "b"}\n', ("line 2", "'text'", "twice")),
        ("d.json", b'{\n"data": []\n}', ("line 1", "one object per line", "list of objects")),
        ("d.json", b'["a"]', ("value 1", "not an object")),
        ("d.jsonl", b'{"text": "\\ud800"}', ("row 1", "half a character")),
    ],
)
def test_what_cannot_be_read_is_named(
    name: str, content: bytes, fragments: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TaskDataError) as caught:
        load_table(tmp_path / name)
    for fragment in ("d.", *fragments):
        assert fragment in str(caught.value)


def test_json_values_stay_what_they_are(tmp_path: Path) -> None:
    rows: list[dict] = [
        {"day": "2024-01-01", "id": 2**70, "n": 1, "tags": ["2024-01-01"]},
        {"day": "2024-01-02T10:00:00Z", "id": 7, "n": 0.5, "more": {"k": [1]}},
    ]
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    assert load_table(path).to_list() == [
        {**rows[0], "id": str(2**70), "n": 1.0, "more": None},
        {**rows[1], "id": "7", "tags": None},
    ]


MIXED = [{"text": "a", "meta": 1}, {"text": "b", "meta": "x"}, {"text": "c", "meta": None}]


@pytest.mark.parametrize("before", [0, 9_999, 10_000])
def test_values_of_several_kinds_are_refused_where_they_are_read(
    before: int, tmp_path: Path
) -> None:
    path = tmp_path / "d.jsonl"
    rows = [{"text": "more", "meta": 0}] * before + MIXED
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = load_table(path)
    assert table["text"][before:] == ["a", "b", "c"]
    task = create_task("text-classification", TaskArguments(label_column="meta"))
    assert task.rows(table, labelled=False)["text"][before:] == ["a", "b", "c"]
    for role in ("text_column", "label_column", "target_column"):
        name = "summarization" if role == "target_column" else "text-classification"
        options = TaskArguments(**{"label_column": "text", role: "meta"})
        with pytest.raises(TaskDataError) as caught:
            task = create_task(name, options)
            data_problem_type(task.rows(table))
        assert f"number in row 0, text in row {before + 1}" in str(caught.value)
    with pytest.raises(TaskDataError, match="'meta' holds values of several kinds"):
        write_table(table, tmp_path / "d.parquet")


def test_lists_and_objects_of_several_kinds(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_text('[{"text": "a", "x": [1, "b"], "y": true}, {"text": "c", "y": 1}]')
    table = load_table(path)
    assert table["text"][:] == ["a", "c"]
    assert describe(table.features["x"]).endswith("(list in row 0)")
    assert describe(table.features["y"]).endswith("(true or false in row 0, number in row 1)")


def test_conll(tmp_path: Path) -> None:
    path = tmp_path / "d.conll"
    path.write_text("-DOCSTART- -X- O O\n\nNew NNP B B-loc\nYork NNP I I-loc\n\n\nhi UH O O")
    assert load_table(path).to_dict() == {
        "tokens": [["New", "York"], ["hi"]], "tags": [["B-loc", "I-loc"], ["O"]],
    }  # fmt: skip
    path.write_text("a\u00a0b\tB-x\r\nc\tO\r\n")
    assert load_table(path).to_dict() == {"tokens": [["a\u00a0b", "c"]], "tags": [["B-x", "O"]]}


TWO = {"tokens": [["#", "Rome"], ["hi"]], "tags": [["O", "B-x"], ["O"]]}


@pytest.mark.parametrize(
    ("content", "expected", "comments"),
    [
        # Line breaks of old Macs.
        ("#\tO\rRome\tB-x\r\rhi\tO\r", TWO, 0),
        # The token, in front of a sentence and in it.
        ("# O\nRome B-x\n\nhi O\n", TWO, 0),
        ("hi O\n# O\n", {"tokens": [["hi", "#"]], "tags": [["O", "O"]]}, 0),
        # Comments have other numbers of columns; a word may begin with their sign.
        ("# sent_id = 1\n# O\nRome B-x\n\n# the end\nhi O\n", TWO, 2),
        ("# one two\n#\tO\nRome\tB-x\n\n#\n# the other one\nhi\tO\n", TWO, 3),
        ("#tag O\nhi\tB-x", {"tokens": [["#tag", "hi"]], "tags": [["O", "B-x"]]}, 0),
        ("#\tB-y\nhi\tO", {"tokens": [["#", "hi"]], "tags": [["B-y", "O"]]}, 0),
    ],
)
def test_comments_of_conll_files(
    content: str,
    expected: dict[str, Any],
    comments: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "d.conll"
    path.write_bytes(content.encode())
    assert load_table(path).to_dict() == expected
    said = f"d.conll: comments are left out, {comments} of its lines (line 1: '# "
    assert (said in capsys.readouterr().err) == (comments > 0)


def test_what_may_be_a_comment_or_a_token_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.conll"
    path.write_text("# O\nRome B-x\n\n# end\nhi O\n")
    with pytest.raises(TaskDataError, match=r"line 4: '# end' may be a comment.*'end', is in"):
        load_table(path)


def test_conll_u_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.conll"
    lines = [[str(i), word, *"abcdefg", "_"] for i, word in enumerate(["John", "lives"], 1)]
    path.write_text("# text = John lives\n" + "\n".join("\t".join(line) for line in lines))
    with pytest.raises(TaskDataError, match=r"d\.conll is CoNLL-U: ten columns.*two columns"):
        load_table(path)


def test_a_word_with_the_sign_of_comments_needs_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "d.conll"
    path.write_text("hi O\n\n#tag\nhi O\n")
    with pytest.raises(TaskDataError, match="line 3: '#tag' has 1 columns"):
        load_table(path)


@pytest.mark.parametrize("source", ["nowhere.csv", "./nowhere", "a/b/c", "dir/d.jsonl.gz"])
def test_what_cannot_be_a_data_set_of_the_hub(source: str) -> None:
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        load_table(source)


def test_options_of_the_hub_do_not_fit_files(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"text": "a"}))
    with pytest.raises(ValueError, match="revision='main'"):
        load_table(path, revision="main")
    with pytest.raises(ValueError, match="split='train'"):
        load_table(path, split="train")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "state.json").write_text("{}")
    with pytest.raises(TaskDataError, match="broken cannot be read"):
        load_table(tmp_path / "broken")


def test_half_a_character_is_refused_by_its_row(tmp_path: Path) -> None:
    rows = [{"text": "\ud83d\ude00", "n": 1}, {"text": ["a", {"b": "\ud83d"}], "n": 2}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    for name in ("a.jsonl", "a.json"):
        with pytest.raises(TaskDataError, match=rf"{name}: row 2 holds half a character, '.ud83d'"):
            load_table(tmp_path / name)
    texts = pa.array([b"one", b"Wien \xed\xa0\xbd"])
    broken = pa.Array.from_buffers(pa.string(), 2, texts.buffers())
    pq.write_table(pa.table({"n": [1, 2], "text": broken}), tmp_path / "a.parquet")
    with pytest.raises(TaskDataError, match=r"a\.parquet: the column 'text' holds.*index 1"):
        load_table(tmp_path / "a.parquet")
