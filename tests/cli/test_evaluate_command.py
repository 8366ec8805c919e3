from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_runs import (
    WINDOWS,
    Files,
    Result,
    assert_says_nothing_about_the_machine,
    gold_answers,
    overlap,
    squad,
    words,
)


def evaluate(program: Callable[..., Result], folder: Path, *argv: str) -> dict:
    result = program("evaluate", "--use_cpu", "--output_dir", folder, *WINDOWS, *argv)
    assert result.status == 0, result.stderr
    return json.loads((folder / "evaluation.json").read_text())


def test_scores_are_those_of_the_predictions(
    files: Files, tmp_path: Path, program: Callable[..., Result]
) -> None:
    content = evaluate(
        program, tmp_path, "--model", files.models["teacher"], "--file", files.validation
    )
    predictions = json.loads((tmp_path / "predictions.json").read_text())
    gold = gold_answers(files.validation)
    assert list(predictions) == list(gold)
    f1 = [max(overlap(predictions[name], text) for text in gold[name]) for name in gold]
    exact = [any(words(predictions[name]) == words(t) for t in gold[name]) for name in gold]
    assert content["metrics"]["f1"] == pytest.approx(100 * sum(f1) / len(f1))
    assert content["metrics"]["exact_match"] == pytest.approx(100 * sum(exact) / len(exact))
    assert content["data"] == {"name": "validation.json", "examples": len(gold)}
    assert content["model"] == "teacher"
    assert not {"runtime", "samples_per_second"} & content["metrics"].keys()
    assert_says_nothing_about_the_machine(tmp_path, str(files.folder), str(tmp_path))


@pytest.mark.parametrize("batch_size", ["1", "5"])
def test_scores_do_not_depend_on_the_batch_size(
    batch_size: str, files: Files, tmp_path: Path, program: Callable[..., Result]
) -> None:
    options = ["--model", files.models["teacher"], "--file", files.validation]
    scores = evaluate(program, tmp_path / "a", *options)["metrics"]
    others = evaluate(program, tmp_path / "b", *options, "--batch_size", batch_size)["metrics"]
    # Not the loss: the model's own counts padding as a place where the answer could be.
    for name in ("f1", "exact_match"):
        assert scores[name] == others[name]
    n_best = [json.loads((tmp_path / f / "nbest_predictions.json").read_text()) for f in "ab"]
    for one, other in zip(*(table.values() for table in n_best), strict=True):
        assert [a["text"] for a in one["answers"]] == [a["text"] for a in other["answers"]]


def test_train_reports_what_evaluate_reports(
    files: Files, train_options: list[str], tmp_path: Path, program: Callable[..., Result]
) -> None:
    assert program(*train_options).status == 0
    trained = json.loads((tmp_path / "out" / "metrics.json").read_text())["eval"]
    options = ["--model", str(tmp_path / "out"), "--file", files.validation]
    scores = evaluate(program, tmp_path / "scores", *options)["metrics"]
    for name in ("f1", "exact_match", "loss"):
        assert scores[name] == pytest.approx(trained[name], rel=1e-5)
    for name in ("predictions.json", "nbest_predictions.json"):
        assert (tmp_path / "out" / name).exists() and (tmp_path / "scores" / name).exists()
    one, other = (json.loads((tmp_path / f / "predictions.json").read_text())
                  for f in ("out", "scores"))  # fmt: skip
    assert one == other


def test_unanswerable_questions_and_the_threshold(
    files: Files, tmp_path: Path, program: Callable[..., Result]
) -> None:
    (tmp_path / "v2.json").write_text(json.dumps(squad(version_2=True)))
    options = ["--model", files.models["teacher"], "--file", str(tmp_path / "v2.json")]
    shares = []
    for threshold in ("-1000", "1000"):
        folder = tmp_path / threshold
        chosen = [*options, f"--no_answer_threshold={threshold}"]
        metrics = evaluate(program, folder, *chosen)["metrics"]
        predictions = json.loads((folder / "predictions.json").read_text())
        empty = [not text for text in predictions.values()]
        assert metrics["NoAns_f1"] == 100 * all(empty)
        assert metrics["total"] == 18 and metrics["NoAns_total"] == 6
        assert metrics["best_f1"] >= metrics["f1"]
        shares.append(sum(empty))
    assert shares == [18, 0]


def test_without_output_dir_only_the_terminal_has_it(
    files: Files, tmp_path: Path, program: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--model", files.models["teacher"], "--file", files.validation]
    result = program("evaluate", "--use_cpu", *WINDOWS, *options)
    assert result.status == 0
    assert "teacher on validation.json, 8 examples" in result.stdout
    assert "exact match" in result.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "fragments"),
    [
        (["--model", "TEACHER"], ["either --file or --dataset_name"]),
        (["--model", "TEACHER", "--file", "FILE", "--dataset_name", "squad"], ["either --file"]),
        (["--model", "./nowhere", "--file", "FILE"], ["--model ./nowhere", "no such folder"]),
        (["--model", "TEACHER", "--file", "no.json"], ["--file no.json", "no such file"]),
        (["--model", "ENCODER", "--file", "FILE", "--task", "question-answering"],
         ["not fine-tuned", "qa_outputs.weight"]),
        (["--model", "ENCODER", "--file", "FILE"], ["--task"]),
        (["--model", "SMALL", "--file", "FILE"], ["97 tokens and the model knows only 96"]),
        (["--model", "TEACHER", "--file", "FILE", "--batch_size", "0"], ["--batch_size 0"]),
        (["--model", "TEACHER", "--file", "FILE", "--task", "poetry"], ["question-answering"]),
        (["--file", "FILE"], ["required", "--model"]),
        (["TEACHER", "--file", "FILE"], ["is neither", "Did you mean --model /"]),
        (["--model", "TEACHER", "--fiel", "x"], ["Did you mean --file?"]),
    ],
)  # fmt: skip
def test_bad_requests(
    argv: list[str],
    fragments: list[str],
    files: Files,
    tmp_path: Path,
    program: Callable[..., Result],
) -> None:
    from tiny import model_for, tokenizer

    model_for("question-answering", seed=0).bert.save_pretrained(tmp_path / "encoder")
    tokenizer().save_pretrained(tmp_path / "encoder")
    known = {"TEACHER": files.models["teacher"], "FILE": files.validation}
    known["ENCODER"] = str(tmp_path / "encoder")
    model_for("question-answering", seed=0, vocab_size=96).save_pretrained(tmp_path / "small")
    tokenizer().save_pretrained(tmp_path / "small")
    known["SMALL"] = str(tmp_path / "small")
    result = program("evaluate", "--use_cpu", *WINDOWS, *(known.get(word, word) for word in argv))
    assert result.status == 2
    for fragment in fragments:
        assert fragment in result.stderr


def test_scores_are_written_before_they_are_shown(
    files: Files,
    tmp_path: Path,
    program: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(*_: object) -> None:
        raise OSError("no terminal")

    monkeypatch.setattr("hf_distill.reports.terminal.print_figures", failing)
    options = ["--use_cpu", "--model", files.models["teacher"], "--file", files.validation]
    result = program("evaluate", "--output_dir", tmp_path, *WINDOWS, *options)
    assert result.status == 2 and "no terminal" in result.stderr
    scores = json.loads((tmp_path / "evaluation.json").read_text())["metrics"]
    monkeypatch.undo()
    assert evaluate(program, tmp_path / "again", *options)["metrics"] == scores


def test_results_of_another_command_stay(
    files: Files, tmp_path: Path, program: Callable[..., Result]
) -> None:
    for name in ("metrics.json", "predictions.json"):
        (tmp_path / name).write_text("{}")
    options = ["--use_cpu", "--model", files.models["teacher"], "--file", files.validation]
    result = program("evaluate", "--output_dir", tmp_path, *WINDOWS, *options)
    assert result.status == 2
    assert "holds the results of `hf-distill train` (metrics.json)" in result.stderr
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "metrics.json": "{}", "predictions.json": "{}",
    }  # fmt: skip


def test_a_decoder_that_would_read_its_label_at_padding_is_refused(
    tmp_path: Path, program: Callable[..., Result]
) -> None:
    from tiny import tokenizer
    from zoo import zoo_model

    for pad in (0, 3):
        folder = tmp_path / str(pad)
        zoo_model("text-classification", "gpt2", seed=0, pad_token_id=pad).save_pretrained(folder)
        tokenizer().save_pretrained(folder)
    (tmp_path / "data.csv").write_text("text,label\nw1 w2 w3,no\nw1,yes\n")
    options = ["--use_cpu", "--task", "text-classification", "--file", tmp_path / "data.csv"]
    assert program("evaluate", *options, "--model", tmp_path / "0").status == 0
    result = program("evaluate", *options, "--model", tmp_path / "3")
    assert result.status == 2
    assert "The model reads the label" in result.stderr
    assert "Set config.pad_token_id=0" in result.stderr
