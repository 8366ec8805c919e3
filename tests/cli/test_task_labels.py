"""Labels by name through all commands, and the scores of what was predicted, computed anew."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch
from any_task import classification_rows, tagged_rows
from cli_runs import Result
from datasets import Dataset
from safetensors.torch import load_file, save_file
from task_runs import LINES, SENTENCES, TEXTS, labelled, save_model, tiny_tokenizer, write_data
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, EvalPrediction

from hf_distill.reports.disagreements import find_disagreements
from hf_distill.tasks.language_modeling import LanguageModelingScorer
from hf_distill.tasks.text_classification import TextClassificationScorer
from hf_distill.tasks.token_classification import TokenClassificationScorer

SHARED = Path(__file__).resolve().parents[3] / "shared"
CLASSES, TOKENS = "text-classification", "token-classification"
FAST = ["--use_cpu", "--disable_tqdm", "true", "--save_strategy", "no", "--max_steps", "3",
        "--per_device_train_batch_size", "2", "--teacher_check_samples", "0",
        "--learning_rate", "1e-2"]  # fmt: skip


def permuted(source: str, folder: Path, order: tuple[int, ...]) -> str:
    """The same model with its labels in another order: label ``order[i]`` becomes number i."""
    old = Path(source)
    folder.mkdir()
    for path in old.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = load_file(old / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = weights[name][list(order)].contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((old / "config.json").read_text())
    names = [config["id2label"][str(number)] for number in order]
    config["id2label"] = {str(number): name for number, name in enumerate(names)}
    config["label2id"] = {name: number for number, name in enumerate(names)}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def scores_of(folder: Path, file: str = "evaluation.json") -> dict:
    return json.loads((folder / file).read_text())


def ids(folder: Path) -> dict[int, str]:
    return dict(AutoConfig.from_pretrained(folder).id2label)


@pytest.mark.parametrize("task", [CLASSES, TOKENS])
def test_order_of_the_teachers_labels_does_not_matter(
    task: str, tmp_path: Path, program: Callable[..., Result]
) -> None:
    data, student = write_data(tmp_path, task), save_model(tmp_path / "student", task, seed=2)
    names = ("neg", "pos") if task == CLASSES else ("B-loc", "B-per", "I-loc", "O")
    teacher = save_model(tmp_path / "teacher", task, seed=1, layers=2, **labelled(*names))
    order = tuple(reversed(range(len(names))))
    other = permuted(teacher, tmp_path / "permuted", order)
    options = ["--task", task, "--student_model", student, "--train_file", data,
               "--validation_file", data, *FAST]  # fmt: skip
    for name, chosen in (("one", teacher), ("other", other)):
        result = program("train", *options, "--teacher_model", chosen,
                         "--output_dir", tmp_path / name)  # fmt: skip
        assert result.status == 0, result.stderr
        assert list(ids(tmp_path / name).values()) == sorted(names)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "other"))
    assert all(one[name].equal(two[name]) for name in one)

    evaluate = ["evaluate", "--task", task, "--use_cpu", "--file", data]
    for name, model in (("scores", teacher), ("scores of permuted", other)):
        result = program(*evaluate, "--model", model, "--output_dir", tmp_path / name)
        assert result.status == 0, result.stderr
    one, two = (scores_of(tmp_path / name)["metrics"] for name in ("scores", "scores of permuted"))
    assert one == pytest.approx(two)
    result = program("compare", "--task", task, "--use_cpu", "--file", data, "--teacher", teacher,
                     "--student_distilled", other, "--output_dir", tmp_path / "compared",
                     "--latency_samples", "0", "--throughput_samples", "0")  # fmt: skip
    assert result.status == 0, result.stderr
    report = scores_of(tmp_path / "compared", "comparison.json")["models"]["student_distilled"]
    assert report["agreement"] == {"identical": 1.0}


@pytest.mark.parametrize("task", [CLASSES, TOKENS])
def test_models_that_number_the_same_names_differently(
    task: str, tmp_path: Path, program: Callable[..., Result]
) -> None:
    """Compared by name where the data has names, refused where it has numbers."""
    names = ("neg", "pos") if task == CLASSES else ("B-loc", "B-per", "I-loc", "O")
    teacher = save_model(tmp_path / "teacher", task, **labelled(*names))
    reverse = tuple(reversed(range(len(names))))
    student = permuted(teacher, tmp_path / "student", reverse)
    numbered = tmp_path / "numbered.jsonl"
    columns = ("text", "label") if task == CLASSES else ("tokens", "tags")
    for text, label in TEXTS if task == CLASSES else SENTENCES:
        number = names.index(label) if isinstance(label, str) else list(map(names.index, label))
        with numbered.open("a") as file:
            file.write(json.dumps(dict(zip(columns, (text, number), strict=True))) + "\n")
    options = ["compare", "--task", task, "--use_cpu", "--latency_samples", "0",
               "--throughput_samples", "0", "--teacher", teacher, "--student_distilled", student,
               "--output_dir", tmp_path / "out"]  # fmt: skip
    result = program(*options, "--file", numbered)
    assert result.status != 0 and "Scoring" not in result.stderr
    assert "--teacher teacher and --student_distilled student number the same" in result.stderr
    result = program(*options, "--file", write_data(tmp_path, task))
    assert result.status == 0, result.stderr
    content = scores_of(tmp_path / "out", "comparison.json")["models"]
    assert content["student_distilled"]["agreement"] == {"identical": 1.0}
    one, other = (content[role]["quality"] for role in ("teacher", "student_distilled"))
    assert one == pytest.approx(other)


def test_answers_in_other_words_do_not_differ() -> None:
    table = Dataset.from_dict({"text": ["x", "y"], "label": [["neg", "pos"], ["pos"]]})
    options = {"problem_type": "multi_label_classification"}
    models = []
    for names, logits in ((("neg", "pos"), [[1, 1], [-1, 1]]), (("POS", "Neg"), [[1, 1], [1, 1]])):
        config = BertConfig(**labelled(*names), **options)
        scorer = TextClassificationScorer(classification_rows(table), config)
        scorer(EvalPrediction(np.array(logits), np.array([[1.0, 1.0], [0.0, 1.0]])))
        models.append(scorer.rows())
    found = find_disagreements(*models)
    assert found is not None
    assert [one.row for some in found.differing.values() for one in some] == [1]


def test_fine_tuned_student_keeps_its_order(tmp_path: Path, program: Callable[..., Result]) -> None:
    data = write_data(tmp_path, CLASSES)
    student = save_model(tmp_path / "student", CLASSES, **labelled("pos", "neg"))
    options = ["--task", CLASSES, "--student_model", student, "--train_file", data,
               "--validation_file", data, *FAST, "--learning_rate", "0"]  # fmt: skip
    result = program("train", *options, "--baseline", "--output_dir", tmp_path / "out")
    assert result.status == 0, result.stderr
    assert "in its own order: pos, neg" in result.stderr and "New in" not in result.stderr
    assert ids(tmp_path / "out") == {0: "pos", 1: "neg"}
    before = load_file(tmp_path / "student" / "model.safetensors")
    assert load_file(tmp_path / "out" / "model.safetensors")["classifier.weight"].equal(
        before["classifier.weight"]
    )
    evaluate = ["evaluate", "--task", CLASSES, "--use_cpu", "--file", data, "--model", student]
    assert program(*evaluate, "--output_dir", tmp_path / "scores").status == 0
    trained = scores_of(tmp_path / "out", "metrics.json")["eval"]
    for name, value in scores_of(tmp_path / "scores")["metrics"].items():
        assert trained[name] == pytest.approx(value)


def test_fine_tuned_student_keeps_tags_that_numbers_do_not_use(
    tmp_path: Path, program: Callable[..., Result]
) -> None:
    names = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG")
    student = save_model(tmp_path / "student", TOKENS, **labelled(*names))
    data = tmp_path / "d.jsonl"
    data.write_text('{"tokens": ["ada", "met", "rome", "!"], "ner_tags": [1, 0, 3, 2]}\n' * 2)
    result = program("train", "--task", TOKENS, "--student_model", student, "--train_file", data,
                     "--baseline", "--output_dir", tmp_path / "out", *FAST)  # fmt: skip
    assert result.status == 0, result.stderr
    assert "keeps its names for them: O, B-PER" in result.stderr
    assert "New in" not in result.stderr
    assert ids(tmp_path / "out") == dict(enumerate(names))


@pytest.mark.parametrize("named", [True, False])
def test_numbers_get_their_names_from_the_teacher(
    named: bool, tmp_path: Path, program: Callable[..., Result]
) -> None:
    data = tmp_path / "d.csv"
    data.write_text("text,label\n" + "".join(f"{t},{int(n == 'pos')}\n" for t, n in
                    ((t.replace(",", ""), n) for t, n in TEXTS)))  # fmt: skip
    student = save_model(tmp_path / "student", CLASSES, num_labels=5)
    names = ("bad", "good") if named else ("LABEL_0", "LABEL_1")
    teacher = save_model(tmp_path / "teacher", CLASSES, seed=1, **labelled(*names))
    options = ["--task", CLASSES, "--student_model", student, "--teacher_model", teacher,
               "--train_file", data, *FAST]  # fmt: skip
    result = program("train", *options, "--output_dir", tmp_path / "out")
    assert result.status == 0, result.stderr
    assert ("taken from the teacher: bad, good" in result.stderr) == named
    assert "New in the student, so trained from scratch: classifier" in result.stderr
    assert ids(tmp_path / "out") == dict(enumerate(names))
    result = program("train", *options, "--output_dir", tmp_path / "alone", "--baseline")
    assert result.status == 0, result.stderr
    assert (tmp_path / "alone" / "config.json").read_text() == (
        tmp_path / "out" / "config.json"
    ).read_text()


def test_rare_label_is_not_lost_with_few_samples(
    tmp_path: Path, program: Callable[..., Result]
) -> None:
    data = tmp_path / "d.csv"
    data.write_text("text,label\n" + "a b,common\n" * 9 + "c,rare\n")
    student = save_model(tmp_path / "student", CLASSES)
    result = program("train", "--task", CLASSES, "--student_model", student, "--baseline",
                     "--train_file", data, "--max_train_samples", "2", *FAST,
                     "--max_steps", "-1", "--num_train_epochs", "1",
                     "--output_dir", tmp_path / "out")  # fmt: skip
    assert result.status == 0, result.stderr
    assert scores_of(tmp_path / "out", "metrics.json")["steps"] == 1
    assert ids(tmp_path / "out") == {0: "common", 1: "rare"}


def test_scores_are_those_of_the_predictions(
    tmp_path: Path, program: Callable[..., Result]
) -> None:
    data = write_data(tmp_path, CLASSES)
    model = save_model(tmp_path / "model", CLASSES, seed=3, **labelled("pos", "neg"))
    result = program("evaluate", "--task", CLASSES, "--use_cpu", "--file", data, "--model", model,
                     "--output_dir", tmp_path / "scores")  # fmt: skip
    assert result.status == 0, result.stderr
    metrics = scores_of(tmp_path / "scores")["metrics"]
    predicted = scores_of(tmp_path / "scores", "predictions.json")
    gold = [label for _, label in TEXTS]
    pairs = list(zip(predicted, gold, strict=True))
    assert metrics["accuracy"] == pytest.approx(100 * sum(p == g for p, g in pairs) / len(pairs))
    hits = sum(p == g == "pos" for p, g in pairs)
    wanted = 200 * hits / (predicted.count("pos") + gold.count("pos"))
    assert metrics["f1"] == pytest.approx(wanted)
    assert "F1 of pos" in result.stdout

    data = write_data(tmp_path, TOKENS)
    names = ("O", "B-per", "B-loc", "I-loc")
    model = save_model(tmp_path / "tagger", TOKENS, seed=3, **labelled(*names))
    result = program("evaluate", "--task", TOKENS, "--use_cpu", "--file", data, "--model", model,
                     "--output_dir", tmp_path / "tags", "--max_length", "12")  # fmt: skip
    assert result.status == 0, result.stderr
    assert "2 of 4 rows are longer than allowed and cut off (--max_length)" in result.stderr
    predicted = scores_of(tmp_path / "tags", "predictions.json")
    assert [len(row) for row in predicted] == [len(words) for words, _ in SENTENCES]
    assert predicted[0][-1] == "O"  # cut off
    pairs = [(p, g) for row, (_, tags) in zip(predicted, SENTENCES, strict=True)
             for p, g in zip(row, tags, strict=True)]  # fmt: skip
    accuracy = scores_of(tmp_path / "tags")["metrics"]["accuracy"]
    assert accuracy == pytest.approx(100 * sum(p == g for p, g in pairs) / len(pairs))


KINDS = {
    "regression": (
        [0.5, 1.5, 2.0, -1.0], {"pearson", "spearman", "mse"}, ["--distillation_loss", "mse"],
    ),
    "multi_label_classification": (
        [["a"], [], ["a", "b"], ["b"]], {"f1_micro", "f1_macro", "exact_match"}, [],
    ),
    "single_label_classification": (["a", "b", "c", "a"], {"accuracy", "f1_macro", "matthews"}, []),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_of_label(kind: str, tmp_path: Path, program: Callable[..., Result]) -> None:
    labels, expected, options = KINDS[kind]
    data = tmp_path / "d.jsonl"
    rows = [{"premise": f"a {n}", "hypothesis": "b", "label": label}
            for n, label in enumerate(labels)]  # fmt: skip
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = ["--task", CLASSES, "--train_file", data, "--validation_file", data, *FAST]
    student = save_model(tmp_path / "student", CLASSES)
    for out, extra in (
        ("teacher", ["--baseline"]),
        ("out", ["--teacher_model", tmp_path / "teacher", *options]),
    ):
        result = program("train", *common, "--student_model", student, *extra,
                         "--output_dir", tmp_path / out)  # fmt: skip
        assert result.status == 0, result.stderr
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert config.problem_type == kind
    assert config.num_labels == {"regression": 1, "multi_label_classification": 2}.get(kind, 3)
    metrics = scores_of(tmp_path / "out", "metrics.json")["eval"]
    assert metrics.keys() >= expected
    predictions = scores_of(tmp_path / "out", "predictions.json")
    if kind == "regression":
        mse = sum((p - g) ** 2 for p, g in zip(predictions, labels, strict=True)) / 4
        assert metrics["mse"] == pytest.approx(mse, rel=1e-5)
    else:
        key = "accuracy" if kind.startswith("single") else "exact_match"
        right = sum(p == g for p, g in zip(predictions, labels, strict=True))
        assert metrics[key] == 25.0 * right
    result = program("compare", "--task", CLASSES, "--use_cpu", "--file", data,
                     "--teacher", tmp_path / "teacher", "--student_distilled", tmp_path / "out",
                     "--output_dir", tmp_path / "compared", "--latency_samples", "1",
                     "--throughput_samples", "1")  # fmt: skip
    assert result.status == 0, result.stderr


def test_perplexity_is_that_of_all_tokens(tmp_path: Path, program: Callable[..., Result]) -> None:
    """Blocks of 16 and a shorter one, in batches of 2, against one float64 sum."""
    task = "text-generation"
    data, source = write_data(tmp_path, task), save_model(tmp_path / "model", task, seed=4)
    result = program("evaluate", "--task", task, "--use_cpu", "--file", data, "--model", source,
                     "--block_size", "16", "--batch_size", "2",
                     "--output_dir", tmp_path / "scores")  # fmt: skip
    assert result.status == 0, result.stderr
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float64).eval()
    tokens = tiny_tokenizer(task)(LINES)["input_ids"]
    total, count = 0.0, 0
    for begin in range(0, len(tokens), 16):
        block = torch.tensor([tokens[begin : begin + 16]])
        with torch.no_grad():
            likely = model(input_ids=block).logits[0].log_softmax(dim=-1)
        for place in range(1, block.shape[1]):
            total -= float(likely[place - 1, block[0, place]])
            count += 1
    assert len(tokens) % 16 > 1
    metrics = scores_of(tmp_path / "scores")["metrics"]
    assert metrics["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
    assert metrics["loss"] == pytest.approx(total / count, rel=1e-6)


def test_masks_are_the_same_for_all_models(tmp_path: Path, program: Callable[..., Result]) -> None:
    data = write_data(tmp_path, "fill-mask")
    found = []
    for batch_size in ("1", "3"):
        model = save_model(tmp_path / batch_size, "fill-mask", seed=5)
        result = program("evaluate", "--task", "fill-mask", "--use_cpu", "--file", data, "--model",
                         model, "--block_size", "16", "--batch_size", batch_size,
                         "--output_dir", tmp_path / f"{batch_size} scores")  # fmt: skip
        assert result.status == 0, result.stderr
        found.append(scores_of(tmp_path / f"{batch_size} scores")["metrics"])
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_several_labels_are_those_more_likely_than_not() -> None:
    table = Dataset.from_dict({"text": ["x", "y"], "label": [["a"], []]})
    options = labelled("a", "b")
    config = BertConfig(**options, problem_type="multi_label_classification")
    scorer = TextClassificationScorer(classification_rows(table), config)
    logits = np.array([[0.2, -0.2], [-3.0, 0.4]])
    metrics = scorer(EvalPrediction(logits, np.array([[1.0, 0.0], [0.0, 0.0]])))
    assert scorer.files() == {"predictions.json": [["a"], ["b"]]}
    assert metrics["exact_match"] == 50.0 and metrics["f1_micro"] == pytest.approx(200 / 3)


@pytest.mark.parametrize(
    ("names", "tags", "predicted", "expected"),
    [
        # the model knows a tag without a letter, which the data lack
        (["O", "B-a", "I-a", "noun"], ["B-a", "I-a", "O", "B-a"], [1, 2, 3, 1], {"f1": 100.0}),
        (["O", "B-a", "I-a", "noun"], ["B-a", "I-a", "O", "noun"], [1, 2, 0, 0],
         {"f1_macro": 66.7}),
        (["O", "U-a", "B-a", "L-a"], ["U-a", "U-a", "O", "O"], [1, 1, 1, 0], {"f1": 80.0}),
    ],
)  # fmt: skip
def test_the_scores_of_tags_are_those_that_tables_show(
    names: list[str], tags: list[str], predicted: list[int], expected: dict[str, float]
) -> None:
    table = Dataset.from_dict({"tokens": [list("wxyz")], "tags": [tags]})
    features = Dataset.from_dict({"words": [[0, 1, 2, 3]]})
    scorer = TokenClassificationScorer(tagged_rows(table), features, BertConfig(**labelled(*names)))
    gold = np.array([[names.index(tag) for tag in tags]])
    kept: Any = (np.zeros((1, 4), dtype=np.float32), np.array([predicted]))
    metrics = scorer(EvalPrediction(kept, gold))
    assert set(scorer.measures.quality) == set(metrics)
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, abs=0.05)


def test_the_loss_of_tags_is_the_mean_over_words() -> None:
    """However sentences are batched, and without what Trainer pads with."""
    table = Dataset.from_dict({"tokens": [["a"], list("bcd")], "tags": [["x"], ["x", "y", "y"]]})
    features = Dataset.from_dict({"words": [[0], [0, 1, 2]]})
    scorer = TokenClassificationScorer(
        tagged_rows(table), features, BertConfig(**labelled("x", "y"))
    )
    logits = torch.randn(2, 4, 2, dtype=torch.float64)
    labels = torch.tensor([[-100, 0, -100, -100], [-100, 0, 1, 1]])
    kept = []
    for row, length in ((0, 2), (1, 4)):
        one = scorer.preprocess_logits(
            logits[row : row + 1, :length], labels[row : row + 1, :length]
        )
        kept.append([np.pad(part[0], (0, 4 - length), constant_values=-100) for part in one])
    losses, tags = (np.stack(parts) for parts in zip(*kept, strict=True))
    together: Any = (losses, tags)
    scorer(EvalPrediction(together, labels.numpy()))
    expected = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    trainer: Any = None
    assert scorer.finish(trainer)["loss"] == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_not_numbers_are_not_scored(value: float) -> None:
    """Their largest would be the first class."""
    logits = np.zeros((3, 2))
    logits[1, 1] = value
    table = Dataset.from_dict({"text": ["x", "y", "z"], "label": ["a", "b", "a"]})
    texts = TextClassificationScorer(classification_rows(table), BertConfig(**labelled("a", "b")))
    with pytest.raises(ValueError, match=r"1 of 3 texts, first for text 1 .*smaller learning_rate"):
        texts(EvalPrediction(logits, np.array([0, 1, 0])))
    numbers = Dataset.from_dict({"text": ["x", "y", "z"], "label": [0.5, 1.5, 2.5]})
    config = BertConfig(num_labels=1, problem_type="regression")
    regression = TextClassificationScorer(classification_rows(numbers), config)
    with pytest.raises(ValueError, match="1 of 3 texts, first for text 2 "):
        regression(EvalPrediction(np.array([[0.0], [1.0], [-value]]), np.array([0.5, 1.5, 2.5])))
    tagged = Dataset.from_dict({"tokens": [["x"]] * 3, "tags": [["a"], ["b"], ["a"]]})
    features = Dataset.from_dict({"words": [[0]] * 3})
    config = BertConfig(**labelled("a", "b"))
    for scorer, unit in (
        (TokenClassificationScorer(tagged_rows(tagged), features, config), "sentence"),
        (LanguageModelingScorer(shifted=False), "block"),
    ):
        labels = torch.tensor([[0], [1], [0]])
        kept = scorer.preprocess_logits(torch.tensor(logits)[:, None], labels)
        outputs: Any = tuple(part.numpy() for part in kept)
        with pytest.raises(ValueError, match=rf"1 of 3 {unit}s, first for {unit} 1 "):
            scorer(EvalPrediction(outputs, labels.numpy()))


REAL = [
    (CLASSES, "sst2/dev.tsv.gz", [], "accuracy"),
    (TOKENS, "wnut17/dev.conll.gz", ["--max_length", "64"], "f1"),
    ("text-generation", "text/tinyshakespeare.txt.gz", ["--block_size", "64"], "perplexity"),
    ("fill-mask", "text/wikitext2-valid.txt.gz", ["--block_size", "64"], "perplexity"),
]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the data in ../shared is not there")
@pytest.mark.parametrize(("task", "file", "options", "metric"), REAL)
def test_real_data(
    task: str,
    file: str,
    options: list[str],
    metric: str,
    tmp_path: Path,
    program: Callable[..., Result],
) -> None:
    data = SHARED / "data" / file
    source = save_model(tmp_path / "model", task)
    common = ["--task", task, *options, "--output_dir", tmp_path / "out"]
    result = program("train", *common, "--student_model", source, "--baseline", *FAST,
                     "--train_file", data, "--validation_file", data,
                     "--max_train_samples", "8", "--max_eval_samples", "8")  # fmt: skip
    assert result.status == 0, result.stderr
    assert math.isfinite(scores_of(tmp_path / "out", "metrics.json")["eval"][metric])
    if task == TOKENS:
        assert len(ids(tmp_path / "out")) == 13


@pytest.mark.skipif(not SHARED.is_dir(), reason="the model in ../shared is not there")
def test_real_masked_language_model_is_far_better_than_chance(
    tmp_path: Path, program: Callable[..., Result]
) -> None:
    result = program("evaluate", "--task", "fill-mask", "--use_cpu", "--block_size", "128",
                     "--model", SHARED / "models" / "minilm-l6-mlm", "--max_eval_samples", "4",
                     "--file", SHARED / "data" / "text" / "wikitext2-valid.txt.gz",
                     "--output_dir", tmp_path)  # fmt: skip
    assert result.status == 0, result.stderr
    metrics = scores_of(tmp_path)["metrics"]
    assert metrics["perplexity"] < 500 and metrics["accuracy"] > 20  # of 30,522 tokens


@pytest.mark.slow
def test_two_processes_score_as_one(tmp_path: Path, program: Callable[..., Result]) -> None:
    data = write_data(tmp_path, CLASSES)
    model = save_model(tmp_path / "model", CLASSES, **labelled("pos", "neg"))
    options = ["evaluate", "--task", CLASSES, "--use_cpu", "--file", data, "--model", model]
    # With more, Trainer's mean of batch means counts the rows twice that fill up the last batch.
    options += ["--batch_size", "1"]
    assert program(*options, "--output_dir", tmp_path / "one").status == 0
    done = forked.run(
        "hf_distill", *map(str, options), "--output_dir", str(tmp_path / "two"), processes=2
    )
    assert done.ok, done.stderr
    one, two = (scores_of(tmp_path / name)["metrics"] for name in ("one", "two"))
    assert one == pytest.approx(two)


def test_rows_that_are_cut_off_are_counted_once_for_all_models(
    tmp_path: Path, program: Callable[..., Result]
) -> None:
    data = write_data(tmp_path, TOKENS)
    names = labelled("O", "B-per", "B-loc", "I-loc")
    models = [save_model(tmp_path / f"tagger {i}", TOKENS, seed=i, **names) for i in range(3)]
    result = program("compare", "--use_cpu", "--file", data, "--models", *models, "--max_length",
                     "12", "--latency_samples", "1", "--output_dir", tmp_path / "out")  # fmt: skip
    assert result.status == 0, result.stderr
    assert result.stderr.count("2 of 4 rows are longer than allowed") == 1
