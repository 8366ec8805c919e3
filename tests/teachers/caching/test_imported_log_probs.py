"""Log-probabilities of other programs as cached outputs, against the model they came from."""

from __future__ import annotations

import codecs
import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from vocabularies import KINDS

from hf_distill import DistillationTrainer, DistillationTrainingArguments, cache_teacher_outputs
from hf_distill.alignment import encode_texts_for_teacher
from hf_distill.tasks.language_modeling import BlockCollator
from hf_distill.teachers.caching import import_log_probs, write_token_ids

TEXTS = ["hello to the people on the river", "hell shell", "Paris lies on the river Seine"]
KIND = "byte_level"


def model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Any:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=64,
        n_embd=16,
        n_layer=1,
        n_head=2,
        initializer_range=0.4,
        architectures=["GPT2LMHeadModel"],
        **{f"{kind}_pdrop": 0.0 for kind in ("attn", "embd", "resid")},
        **{f"{n}_token_id": getattr(tokenizer, f"{n}_token_id") for n in ("bos", "eos", "pad")},
    )
    return GPT2LMHeadModel(config).eval()


def rows(tokenizer: PreTrainedTokenizerFast) -> Dataset:
    encoded = Dataset.from_dict({"text": TEXTS}).map(lambda row: tokenizer(row["text"]))
    return encoded.add_column("labels", encoded["input_ids"])


def logged(lm: Any, ids: list[int], k: int) -> list[dict[int, float] | None]:
    """As vLLM writes them: the token itself, and the k most likely ones."""
    with torch.no_grad():
        values = lm(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    found: list[dict[int, float] | None] = [None]
    for place, own in enumerate(ids[1:]):
        chosen = dict.fromkeys([own, *values[place].topk(k).indices.tolist()] if k else [own])
        found.append({token: float(values[place, token]) for token in chosen})
    return found


def vllm_row(ids: list[int], entries: list[Any]) -> dict[str, Any]:
    written = [
        one and {str(t): {"logprob": v, "rank": 1, "decoded_token": "x"} for t, v in one.items()}
        for one in entries
    ]
    return {"prompt_token_ids": ids, "prompt_logprobs": written}


def write_lines(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def as_vllm(path: Path, texts: list[tuple[list[int], list[Any]]]) -> Path:
    return write_lines(path / "log.jsonl", [vllm_row(*text) for text in reversed(texts)])


def as_server(path: Path, texts: list[tuple[list[int], list[Any]]]) -> Path:
    lines = [{"id": "cmpl-1", "choices": [vllm_row(*text)]} for text in texts]
    for line in lines:
        line["choices"][0].pop("prompt_token_ids")  # then in the order of the data
    return write_lines(path / "log.jsonl", lines)


def as_parquet(path: Path, texts: list[tuple[list[int], list[Any]]]) -> Path:
    columns = {
        "input_ids": [ids for ids, _ in texts],
        "target_token_ids": [[[*one] for one in entries[1:]] for _, entries in texts],
        "target_logprobs": [[[*one.values()] for one in entries[1:]] for _, entries in texts],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), path / "log.parquet")
    return path / "log.parquet"


WRITERS: dict[str, Callable[[Path, Any], Path]] = {
    "vllm": as_vllm,
    "server": as_server,
    "parquet": as_parquet,
}


def stored(tmp_path: Path, **options: Any) -> dict[str, Any]:
    return {"dtype": "float32", "output_dir": tmp_path / "stored", **options}


@pytest.mark.parametrize("layout", WRITERS)
def test_all_entries_are_what_the_teachers_own_outputs_are(layout: str, tmp_path: Path) -> None:
    words = KINDS[KIND]()
    data, teacher = rows(words), model(words, 1)
    texts = [(ids, logged(teacher, ids, len(words))) for ids in data["input_ids"]]
    collator = BlockCollator(words)
    options = stored(tmp_path, processing_class=words, data_collator=collator)
    found = import_log_probs(WRITERS[layout](tmp_path, texts), teacher.config, data, **options)
    options["output_dir"] = tmp_path / "own"
    own = cache_teacher_outputs(teacher, data, top_k=len(words), use_cpu=True, **options)
    for row in zip(found, own, strict=True):
        values, ids = (
            [torch.tensor(one[name]).view(-1, len(words)) for one in row]
            for name in ("teacher_logits", "teacher_token_ids")
        )
        ours, theirs = (
            torch.zeros_like(value).scatter(1, one.long(), value).log_softmax(-1)
            for value, one in zip(values, ids, strict=True)
        )
        assert torch.allclose(ours, theirs, atol=1e-5)
    description = found.features["teacher_checksum"].id
    assert json.loads(description)["architecture"] == "GPT2LMHeadModel"


def test_few_entries_are_exact_and_share_out_what_is_left(tmp_path: Path) -> None:
    words = KINDS[KIND]()
    data, teacher = rows(words), model(words, 1)
    texts = [(ids, logged(teacher, ids, 3)) for ids in data["input_ids"]]
    options = stored(tmp_path, processing_class=words, data_collator=BlockCollator(words))
    found = import_log_probs(as_vllm(tmp_path, texts), teacher.config, data, **options)
    assert max(len(one) for _, entries in texts for one in entries[1:] if one) == 4
    for row, (_, entries) in zip(found, texts, strict=True):
        values = torch.tensor(row["teacher_logits"]).view(-1, 4).tolist()
        ids = torch.tensor(row["teacher_token_ids"]).view(-1, 4).tolist()
        assert len(values) == len(entries) - 1
        for value, token, rest, one in zip(
            values, ids, row["teacher_rest"], entries[1:], strict=True
        ):
            assert one is not None
            left = 1 - sum(map(math.exp, one.values()))
            even = left / (len(words) - len(one))
            wanted = {t: one.get(t, math.log(even)) for t in token}
            assert {*one} <= {*token}
            assert value == pytest.approx([*wanted.values()], abs=1e-4)
            total = math.fsum(map(math.exp, value)) + math.exp(rest)
            assert total == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("other_tokenizer", [False, True])
def test_a_student_learns_from_them(other_tokenizer: bool, tmp_path: Path) -> None:
    """With another tokenizer the text's own tokens are enough for a live teacher's loss."""
    ours, theirs = KINDS["word_piece" if other_tokenizer else KIND](), KINDS[KIND]()
    data = rows(ours)
    if other_tokenizer:
        data = encode_texts_for_teacher(data, ours, theirs)
    teacher, student = model(theirs, 1), model(ours, 2)
    column = "teacher_input_ids" if other_tokenizer else "input_ids"
    k = 0 if other_tokenizer else len(theirs)
    texts = [(ids, logged(teacher, ids, k)) for ids in data[column]]
    collator = BlockCollator(ours)
    imported = import_log_probs(
        as_vllm(tmp_path, texts),
        teacher.config,
        data,
        **stored(tmp_path, data_collator=collator, processing_class=ours),
        **({"teacher_processing_class": theirs} if other_tokenizer else {}),
    )
    found = []
    for source, train in ((None, imported), (teacher, data)):
        trainer = DistillationTrainer(
            model=copy.deepcopy(student),
            teacher_model=source,
            teacher_processing_class=theirs if other_tokenizer else None,
            args=DistillationTrainingArguments(
                str(tmp_path / "out"),
                max_steps=2,
                logging_steps=1,
                report_to="none",
                use_cpu=True,
                save_strategy="no",
                disable_tqdm=True,
                teacher_check_samples=0,
            ),
            train_dataset=train,
            processing_class=ours,
            data_collator=collator,
        )
        trainer.train()
        found.append([entry["loss_prediction"] for entry in trainer.state.log_history[:2]])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def changed(row: dict[str, Any], **values: Any) -> dict[str, Any]:
    return {**row, **values}


def at(row: dict[str, Any], place: int, entry: Any) -> dict[str, Any]:
    entries = [*row["prompt_logprobs"]]
    entries[place] = entry
    return changed(row, prompt_logprobs=entries)


def in_lists(row: dict[str, Any], ids: list[Any], values: list[Any]) -> dict[str, Any]:
    further = len(row["prompt_token_ids"]) - 2
    return {
        "input_ids": row["prompt_token_ids"],
        "target_token_ids": [[], ids, *[[1]] * further],
        "target_logprobs": [[], values, *[[-1.0]] * further],
    }


BAD: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no log-probabilities": (lambda r: changed(r, prompt_logprobs=None), r"line 1.*=K"),
    "not an object": (lambda r: [r], r"line 1 is a list"),
    "too few positions": (
        lambda r: changed(r, prompt_logprobs=r["prompt_logprobs"][:-1]),
        r"line 1 has \d+ tokens",
    ),
    "a first position": (lambda r: at(r, 0, {"1": -1.0}), r"line 1: the first position"),
    "an empty position": (lambda r: at(r, 2, {}), r"line 1, position 2 has no"),
    "NaN": (lambda r: at(r, 1, {"1": {"logprob": math.nan}}), r"position 1 has .* NaN"),
    "a logit": (lambda r: at(r, 1, {"1": {"logprob": 3.5}}), r"position 1 has .* 3\.5"),
    "probabilities above 1": (
        lambda r: at(r, 1, {"1": -0.1, "2": -0.1}),
        r"position 1: .* add up to 1\.8",
    ),
    "a foreign id": (lambda r: at(r, 1, {"99999": -1.0}), r"position 1 has .* id 99999"),
    "no id": (lambda r: at(r, 1, {"word": -1.0}), r"position 1 has the token id 'word'"),
    "an id with an underscore": (lambda r: at(r, 1, {"1_0": -1.0}), r"position 1 has .*'1_0'"),
    "a fraction of an id": (lambda r: in_lists(r, [2.7], [-1.0]), r"position 1 has .* id 2\.7,"),
    "an id of true": (lambda r: in_lists(r, [True], [-1.0]), r"position 1 has .* id True,"),
    "an id of many digits": (lambda r: at(r, 1, {"9" * 5000: -1.0}), r"position 1 has .* id '999"),
    "no number": (lambda r: at(r, 1, {"1": {"rank": 1}}), r"position 1 has .*-probability None"),
    "false as a number": (lambda r: at(r, 1, {"1": False}), r"position 1 has .* False"),
    "a number as text": (lambda r: at(r, 1, {"1": "-1.0"}), r"position 1 has .* '-1\.0'"),
    "a number of many digits": (lambda r: at(r, 1, {"1": -(10**400)}), r"position 1 has .* -1000"),
    "an empty text": (
        lambda r: {"input_ids": [], "target_token_ids": [], "target_logprobs": []},
        r"line 1 is an empty text",
    ),
    "an empty text of vLLM": (
        lambda r: {"prompt_token_ids": [], "prompt_logprobs": [None]},
        r"line 1 is an empty text",
    ),
    "an empty text without ids": (lambda r: {"prompt_logprobs": []}, r"line 1 is an empty text"),
    "a list of entries": (lambda r: at(r, 1, [-1.0]), r"line 1: .* a list"),
    "another text": (
        lambda r: changed(r, prompt_token_ids=[9, *r["prompt_token_ids"][1:]]),
        r"Row 0 of the data is not in log\.jsonl",
    ),
    "another order": (
        lambda r: {"prompt_logprobs": at(r, 1, {"1": -1.0})["prompt_logprobs"]},
        r"line 1: the token \d+ at position 1 of row 0",
    ),
    "another length": (
        lambda r: {"prompt_logprobs": [*r["prompt_logprobs"], {"1": -1.0}]},
        r"line 1: there are log-probabilities for \d+ tokens",
    ),
    "different lengths": (
        lambda r: {
            "input_ids": r["prompt_token_ids"],
            "target_token_ids": [[1]] * len(r["prompt_token_ids"]),
            "target_logprobs": [[-1.0, -2.0]] * len(r["prompt_token_ids"]),
        },
        r"line 1: target_token_ids and target_logprobs",
    ),
    "an id twice": (
        lambda r: {
            "input_ids": r["prompt_token_ids"],
            "target_token_ids": [[1, 1]] * (len(r["prompt_token_ids"]) - 1),
            "target_logprobs": [[-1.0, -2.0]] * (len(r["prompt_token_ids"]) - 1),
        },
        r"line 1, position 1 has the same token id twice",
    ),
}


def test_of_another_tokenizer_the_texts_own_tokens_must_be_there(tmp_path: Path) -> None:
    """Their probability would be made up from what the others leave."""
    ours, theirs = KINDS["word_piece"](), KINDS[KIND]()
    data = encode_texts_for_teacher(rows(ours), ours, theirs)
    texts = [(ids, logged(model(theirs, 1), ids, 3)) for ids in data["teacher_input_ids"]]
    ids, entries = texts[1]
    entries[2] = {token: value for token, value in entries[2].items() if int(token) != ids[2]}
    options = stored(tmp_path, data_collator=BlockCollator(ours), processing_class=ours)
    file = as_vllm(tmp_path, texts)
    with pytest.raises(ValueError, match=f"the token {ids[2]} at position 2 of row 1"):
        import_log_probs(
            file, model(theirs, 1).config, data, **options, teacher_processing_class=theirs
        )


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_is_refused_by_its_place(kind: str, tmp_path: Path) -> None:
    words = KINDS[KIND]()
    data, teacher = rows(words).select([0]), model(words, 1)
    good = vllm_row(data[0]["input_ids"], logged(teacher, data[0]["input_ids"], 2))
    break_it, message = BAD[kind]
    file = write_lines(tmp_path / "log.jsonl", [break_it(good)])
    with pytest.raises(ValueError, match=message):
        import_log_probs(file, teacher.config, data, **stored(tmp_path, processing_class=words))
    assert not (tmp_path / "stored").exists()


def test_bad_files_are_refused(tmp_path: Path) -> None:
    words = KINDS[KIND]()
    data, config = rows(words), model(words, 1).config
    contents = {
        "none.jsonl": (None, "no file none"),
        "log.txt": ("", r"log\.txt.*\.parquet"),
        "empty.jsonl": ("\n", r"empty\.jsonl is empty"),
        "cut.jsonl": ('{"prompt', r"cut\.jsonl, line 1 is not JSON"),
        "bad.parquet": ("PAR", r"bad\.parquet is not a Parquet file"),
    }
    for name, (content, message) in contents.items():
        if content is not None:
            (tmp_path / name).write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            import_log_probs(tmp_path / name, config, data)
    one = vllm_row(data[0]["input_ids"], logged(model(words, 1), data[0]["input_ids"], 1))
    del one["prompt_token_ids"]
    with pytest.raises(ValueError, match=r"1 texts without token ids.*3 rows"):
        import_log_probs(write_lines(tmp_path / "few.jsonl", [one]), config, data)


def test_a_byte_order_mark_and_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    words = KINDS[KIND]()
    data, teacher = rows(words), model(words, 1)
    write_token_ids("~/ids.jsonl", data)
    prompts = [json.loads(line) for line in (tmp_path / "ids.jsonl").read_text().splitlines()]
    assert [one["prompt_token_ids"] for one in prompts] == data["input_ids"][:]
    texts = [(ids, logged(teacher, ids, 2)) for ids in data["input_ids"]]
    file = as_vllm(tmp_path, texts)
    options = {"processing_class": words, "data_collator": BlockCollator(words)}
    plain = import_log_probs("~/log.jsonl", teacher.config, data, **options)
    file.write_bytes(codecs.BOM_UTF8 + file.read_bytes())
    marked = import_log_probs(file, teacher.config, data, **options)
    assert marked["teacher_logits"][:] == plain["teacher_logits"][:]


def test_token_ids_replace_nothing_but_token_ids(tmp_path: Path) -> None:
    data = rows(KINDS[KIND]())
    file = tmp_path / "new" / "ids.jsonl"
    for part in (data, data.select([1])):
        write_token_ids(file, part)
        assert len(file.read_text().splitlines()) == len(part)
    (tmp_path / "empty").touch()
    write_token_ids(tmp_path / "empty", data)
    assert (tmp_path / "empty").read_text().count("prompt_token_ids") == len(data)
    answer = json.dumps(vllm_row([1, 2], [None, {2: -1.0}])).encode()
    other = tmp_path / "other"
    for content in (b"some text\n", b'{"text": "a"}\n', b"\xff\xfe", b"[1]\n", answer):
        other.write_bytes(content)
        with pytest.raises(ValueError, match=r"other is there already.*new file"):
            write_token_ids(other, data)
        assert other.read_bytes() == content
    with pytest.raises(ValueError, match="is there already"):
        write_token_ids(tmp_path, data)
    with pytest.raises(ValueError, match=r"other is not a folder"):
        write_token_ids(tmp_path / "other" / "ids.jsonl", data)


def test_token_ids_are_whole_or_not_there(tmp_path: Path) -> None:
    data = rows(KINDS[KIND]())
    write_token_ids(tmp_path / "ids.jsonl", data)
    before = (tmp_path / "ids.jsonl").read_text()
    broken = data.remove_columns("input_ids").add_column("input_ids", [[], [], [b"no JSON"]])
    with pytest.raises(TypeError):
        write_token_ids(tmp_path / "ids.jsonl", broken)
    assert (tmp_path / "ids.jsonl").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["ids.jsonl"]
