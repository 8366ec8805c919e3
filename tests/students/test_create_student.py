"""Students in depth and in width, against closed forms and copies made by hand."""

from __future__ import annotations

import copy
import gzip
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import bert_config, dataset_for, model_for, tokenizer
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AlbertForQuestionAnswering,
    AutoTokenizer,
    BertForQuestionAnswering,
    BertModel,
    PreTrainedModel,
)

from hf_distill import create_student
from hf_distill.files import read_json
from hf_distill.students import create, regression, save_student, statistics
from hf_distill.students.calibration import ROWS_PER_BATCH

QA, CLASSES = "question-answering", "text-classification"
SHARED = Path(__file__).resolve().parents[3] / "shared"


def batch(task: str, seed: int) -> dict[str, Tensor]:
    rows = dataset_for(task, 32, seed=seed, labels=False)
    rows.set_format("torch")
    return dict(rows[:].items())


def answers(model: nn.Module, task: str = QA, seed: int = 9) -> Tensor:
    inputs = batch(task, seed)
    with torch.no_grad():
        outputs = model.eval()(**inputs)
    mask = inputs["attention_mask"].bool()
    if task == CLASSES:
        return outputs.logits
    return torch.stack([outputs.start_logits[mask], outputs.end_logits[mask]])


def narrow(teacher: nn.Module, task: str = QA, **options: Any) -> PreTrainedModel:
    options = {"hidden_size": 8, "calibration_data": dataset_for(task, 32, seed=3), **options}
    return create_student(teacher, **options)


# ---- depth -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "number", "expected"),
    [
        (None, 3, [0, 2, 4]),
        ("uniform", 4, [0, 1, 3, 4]),
        ("first", 2, [0, 1]),
        ("last", 2, [4, 5]),
        ([1, 5], None, [1, 5]),
        (None, None, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_layers_are_copied(layers: Any, number: int | None, expected: list[int]) -> None:
    teacher = model_for(QA, seed=0, layers=6)
    student = create_student(teacher, layers=layers, num_hidden_layers=number)
    by_hand = copy.deepcopy(teacher)
    by_hand.bert.encoder.layer = nn.ModuleList(teacher.bert.encoder.layer[i] for i in expected)
    assert student.config.num_hidden_layers == len(expected)
    weights = by_hand.state_dict()
    assert student.state_dict().keys() == weights.keys()
    for name, value in student.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert torch.equal(answers(student), answers(by_hand))


def test_auto_keeps_the_layers_that_the_output_misses_most() -> None:
    """Layers 0 and 3 hand on what they get but for a rounding: they go."""
    teacher: Any = model_for(QA, seed=0, layers=4)
    with torch.no_grad():
        for index in (0, 3):
            layer = teacher.bert.encoder.layer[index]
            for writer in (layer.attention.output, layer.output):
                writer.dense.weight.mul_(1e-3)
                writer.dense.bias.zero_()
    data = dataset_for(QA, 16, seed=3)
    student = create_student(teacher, num_hidden_layers=2, layers="auto", calibration_data=data)
    kept = [teacher.bert.encoder.layer[i] for i in (1, 2)]
    for copied, layer in zip(student.bert.encoder.layer, kept, strict=True):
        assert torch.equal(copied.output.dense.weight, layer.output.dense.weight)


def test_auto_runs_as_many_batches_as_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until they have the tokens, with the padding left out."""
    found: list[Any] = []
    least_missed = create.least_missed

    def watched(*args: Any) -> list[int]:
        found.append(args[1])
        return least_missed(*args)

    monkeypatch.setattr(create, "least_missed", watched)
    teacher, data = model_for(QA, seed=0, layers=2), dataset_for(QA, 4 * ROWS_PER_BATCH, seed=3)
    half = sum(map(sum, data["attention_mask"])) // 2
    for tokens in (1, half, 10**6):
        create_student(teacher, num_hidden_layers=1, layers="auto", calibration_data=data,
                       calibration_tokens=tokens)  # fmt: skip
        sizes = [int(batch["attention_mask"].sum()) for batch in found[-1]]
        assert sum(sizes[:-1]) < tokens and (sum(sizes) >= tokens or len(sizes) == 4)
    numbers = [len(batches) for batches in found]
    assert numbers[0] == 1 < numbers[1] < numbers[2] == 4


# ---- width: closed forms ---------------------------------------------------------------------


def embedded(core: Any, rotation: Tensor, heads: int, task: str) -> Any:
    """A model that computes what ``core`` does, in a stream of ``rotation @`` the core's.

    It has more heads and neurons, which do nothing.
    """
    wide, size = rotation.shape
    config = bert_config(len(core.bert.encoder.layer), wide, num_attention_heads=heads,
                         num_labels=core.config.num_labels)  # fmt: skip
    torch.manual_seed(7)
    model: Any = type(core)(config)
    scale = (size / wide) ** 0.5

    def linear(name: str, reads: bool, writes: bool) -> None:
        one, other = core.get_submodule(name), model.get_submodule(name)
        weight, bias = one.weight, one.bias
        if reads:
            weight = weight @ rotation.T
        if writes:
            weight, bias = rotation @ weight, rotation @ bias
        other.weight.zero_()
        other.bias.zero_()
        other.weight[: weight.shape[0], : weight.shape[1]] = weight
        other.bias[: len(bias)] = bias

    def norm(name: str) -> None:
        one, other = core.get_submodule(name), model.get_submodule(name)
        other.weight.copy_(scale * (rotation.abs() if size == wide else 1) @ one.weight
                           if size == wide else scale * one.weight[0].expand(wide))  # fmt: skip
        other.bias.copy_(rotation @ one.bias)

    with torch.no_grad():
        for table in ("word", "position", "token_type"):
            name = f"bert.embeddings.{table}_embeddings.weight"
            model.get_parameter(name).copy_(core.get_parameter(name) @ rotation.T)
        norm("bert.embeddings.LayerNorm")
        for i in range(len(core.bert.encoder.layer)):
            layer = f"bert.encoder.layer.{i}"
            for name in ("query", "key", "value"):
                linear(f"{layer}.attention.self.{name}", True, False)
            linear(f"{layer}.attention.output.dense", False, True)
            norm(f"{layer}.attention.output.LayerNorm")
            linear(f"{layer}.intermediate.dense", True, False)
            linear(f"{layer}.output.dense", False, True)
            norm(f"{layer}.output.LayerNorm")
        if task == QA:
            linear("qa_outputs", True, False)
        else:
            linear("bert.pooler.dense", True, False)
            linear("classifier", False, False)
    return model.eval()


def rotation(wide: int, size: int) -> Tensor:
    """Orthonormal columns that map a vector of ones to a multiple of a vector of ones."""
    torch.manual_seed(5)
    draw = torch.randn(wide, size, dtype=torch.float64)
    draw[:, 0] = 1.0
    wide_axes = torch.linalg.qr(draw).Q
    wide_axes[:, 0] = wide_axes[:, 0].abs()
    draw = torch.randn(size, size, dtype=torch.float64)
    draw[:, 0] = 1.0
    axes = torch.linalg.qr(draw).Q
    axes[:, 0] = axes[:, 0].abs()
    return (wide_axes @ axes.T).float()


@pytest.mark.parametrize("task", [QA, CLASSES])
def test_a_teacher_that_needs_half_of_its_width_comes_back(task: str) -> None:
    core = model_for(task, seed=1, layers=3, width=8, num_attention_heads=2).eval()
    with torch.no_grad():
        for module in core.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.fill_(1.3)
                module.bias.normal_(0, 0.3)
    teacher = embedded(core, rotation(16, 8), 4, task)
    torch.testing.assert_close(answers(teacher, task), answers(core, task), atol=1e-4, rtol=1e-4)
    student = narrow(teacher, task)
    assert (student.config.hidden_size, student.config.num_attention_heads) == (8, 2)
    assert student.config.intermediate_size == 16
    torch.testing.assert_close(answers(student, task), answers(core, task), atol=1e-3, rtol=1e-3)
    other = narrow(teacher, task, hidden_size=4, intermediate_size=8)
    assert (answers(other, task) - answers(core, task)).abs().max() > 0.05


@pytest.mark.parametrize("task", [QA, CLASSES])
def test_the_order_of_units_does_not_matter(task: str) -> None:
    core = model_for(task, seed=1, layers=2)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    teacher = embedded(core, torch.eye(16)[order], 2, task)
    torch.testing.assert_close(answers(teacher, task), answers(core, task), atol=1e-4, rtol=1e-4)
    students = [narrow(model, task) for model in (core, teacher)]
    one, other = (answers(student, task) for student in students)
    torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def test_a_fit_is_nearer_than_the_first_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random teacher cannot be compressed, so on the rows that it was fitted on."""
    teacher = model_for(QA, seed=0, layers=3)
    wanted, fitted = answers(teacher, seed=3), answers(narrow(teacher), seed=3)
    monkeypatch.setattr(regression, "RIDGE", 1e9)  # nothing but the projection of the teacher
    guessed = answers(narrow(teacher), seed=3)
    assert (fitted - wanted).square().mean() < 0.75 * (guessed - wanted).square().mean()


def test_depth_by_least_squares_is_nearer_than_a_copy() -> None:
    teacher = model_for(QA, seed=0, layers=4)
    data = dataset_for(QA, 32, seed=3)
    copied = create_student(teacher, num_hidden_layers=2)
    fitted = create_student(teacher, num_hidden_layers=2, initialization="least_squares",
                            calibration_data=data)  # fmt: skip
    errors = [(answers(student) - answers(teacher)).square().mean() for student in (copied, fitted)]
    assert errors[1] < errors[0]
    whole = create_student(teacher, initialization="least_squares")
    assert torch.equal(answers(whole), answers(teacher))


def test_only_neurons_can_be_cut() -> None:
    teacher = model_for(QA, seed=0, layers=2)
    with torch.no_grad():
        for layer in teacher.bert.encoder.layer:
            layer.output.dense.weight[:, ::2] = 0.0
    student = create_student(
        teacher, intermediate_size=16, calibration_data=dataset_for(QA, 32, seed=3)
    )
    assert student.config.hidden_size == 16
    torch.testing.assert_close(answers(student), answers(teacher), atol=1e-4, rtol=1e-4)


def test_the_basis_has_orthonormal_directions_that_add_up_to_0() -> None:
    covariance = torch.cov(
        torch.randn(16, 100, generator=torch.Generator().manual_seed(0)).double()
    )
    basis = statistics.principal_basis(covariance, 8, centred=True)
    spectrum = torch.linalg.svdvals(basis)
    torch.testing.assert_close(
        spectrum, torch.tensor([1.0] * 7 + [0.0]).double(), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(basis.sum(0), torch.zeros(16).double(), atol=1e-5, rtol=0)
    # They span the leading eigenvectors.
    vectors = torch.linalg.eigh(covariance).eigenvectors[:, -7:]
    torch.testing.assert_close(basis @ vectors @ vectors.T, basis)


# ---- the same again, and nothing left behind -------------------------------------------------


def test_the_same_seed_gives_the_same_student_bit_for_bit() -> None:
    teacher = model_for(QA, seed=0)
    torch.manual_seed(1)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    one = narrow(teacher).state_dict()
    assert torch.equal(torch.rand(1), drawn)
    other = narrow(teacher).state_dict()
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    third = narrow(teacher, seed=1, calibration_tokens=200).state_dict()
    assert any(not torch.equal(value, third[name]) for name, value in one.items())


@pytest.mark.parametrize("fault", [None, "data"])
def test_the_teacher_is_as_before(fault: str | None) -> None:
    teacher = model_for(QA, seed=0).train()
    teacher.bert.encoder.eval()
    modes = [module.training for module in teacher.modules()]
    weights = {name: value.clone() for name, value in teacher.state_dict().items()}
    if fault is None:
        narrow(teacher)
    else:
        with pytest.raises(IndexError):
            narrow(teacher, calibration_data=[{"input_ids": [5, 6], "token_type_ids": [0, 99]}] * 3)
    assert [module.training for module in teacher.modules()] == modes
    assert all(torch.equal(value, weights[name]) for name, value in teacher.state_dict().items())
    for module in teacher.modules():
        assert "forward" not in vars(module)
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_padding_is_left_out() -> None:
    teacher = model_for(QA, seed=0)
    data = dataset_for(QA, 32, seed=3, labels=False)
    padded = narrow(teacher, calibration_data=data)
    shorter = [
        {name: values[: sum(row["attention_mask"])] for name, values in row.items()} for row in data
    ]
    student = narrow(teacher, calibration_data=shorter, processing_class=tokenizer())
    torch.testing.assert_close(answers(student), answers(padded), atol=1e-3, rtol=1e-3)


def test_texts_and_a_file_of_texts(tmp_path: Path) -> None:
    teacher = model_for(QA, seed=0)
    texts = [f"word{i} abc{i} and {chr(97 + i % 26)} go on. word{i + 1}" for i in range(40)]
    student = narrow(teacher, calibration_data=texts, processing_class=tokenizer())
    (tmp_path / "texts.txt").write_text("\n\n".join(texts), encoding="utf-8")
    other = narrow(teacher, calibration_data=tmp_path / "texts.txt", processing_class=tokenizer())
    assert torch.equal(answers(student), answers(other))


def test_memory_does_not_grow_with_the_tokens() -> None:
    torch.manual_seed(0)
    teacher = BertModel(bert_config(1, 64, max_position_embeddings=128))
    peaks = []
    for rows in (10, 200):
        random = torch.Generator().manual_seed(0)
        data = [{"input_ids": torch.randint(5, 97, (128,), generator=random)} for _ in range(rows)]
        with _PeakMemory() as memory:
            create_student(teacher, hidden_size=32, calibration_data=data,
                           calibration_tokens=128 * rows)  # fmt: skip
        peaks.append(memory.peak)
    # 24,320 more tokens, at more than 2 kB each for the states of one layer.
    assert peaks[1] - peaks[0] < 20_000


class _PeakMemory:
    """The highest anonymous memory of the process while it is entered, in kB."""

    def __enter__(self) -> _PeakMemory:
        self.peak, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            status = Path("/proc/self/status").read_text()
            self.peak = max(self.peak, int(status.split("RssAnon:")[1].split()[0]))


# ---- what is kept, saved, and refused --------------------------------------------------------


def test_names_and_settings_are_kept_and_saved(tmp_path: Path) -> None:
    labels = {0: "no", 1: "maybe", 2: "yes"}
    numbers = {name: number for number, name in labels.items()}
    teacher = model_for(
        CLASSES,
        seed=0,
        id2label=labels,
        label2id=numbers,
        problem_type="single_label_classification",
        pad_token_id=0,
    )
    student = narrow(teacher, CLASSES)
    assert student.config.id2label == labels
    assert student.config.problem_type == "single_label_classification"
    assert student.config.pad_token_id == 0
    assert teacher.config.hidden_size == 16
    record = save_student(student, tmp_path, tokenizer())
    assert read_json(tmp_path / "student.json", "") == record
    assert record["layers"] == [0, 1] and record["sizes"]["hidden_size"] == 8
    assert record["calibration_tokens"] > 100
    assert AutoTokenizer.from_pretrained(tmp_path).vocab_size == 97
    assert str(tmp_path) not in (tmp_path / "config.json").read_text()
    again = type(student).from_pretrained(tmp_path)
    assert all(
        torch.equal(a, b) for a, b in zip(again.parameters(), student.parameters(), strict=True)
    )
    with pytest.raises(ValueError, match="create_student"):
        save_student(teacher, tmp_path)


def test_a_folder_and_a_bare_encoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher = BertModel(bert_config(), add_pooling_layer=False)
    teacher.save_pretrained(tmp_path)
    student = create_student(teacher, num_hidden_layers=1)
    assert student.pooler is None
    qa = model_for(QA, seed=0)
    qa.save_pretrained(tmp_path)
    student = create_student(tmp_path, num_hidden_layers=1)
    assert isinstance(student, BertForQuestionAnswering)
    assert torch.equal(student.qa_outputs.weight, qa.qa_outputs.weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_student_has_the_teachers_precision(dtype: torch.dtype) -> None:
    teacher = model_for(QA, seed=0).to(dtype)
    student = narrow(teacher)
    assert student.dtype == dtype
    assert torch.isfinite(answers(student)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 12}, "hidden_size=12.*num_attention_heads"),
        ({"hidden_size": 32}, "hidden_size=32.*16"),
        ({"hidden_size": 8, "num_attention_heads": 2}, "num_attention_heads=2"),
        ({"intermediate_size": 99}, "intermediate_size=99.*32"),
        ({"num_hidden_layers": 3}, "num_hidden_layers=3.*2"),
        ({"layers": "middle"}, "layers='middle'.*uniform"),
        ({"layers": [1, 0]}, r"layers=\[1, 0\]"),
        ({"layers": [0, 2]}, r"layers=\[0, 2\].*0 to 1"),
        ({"layers": [0], "num_hidden_layers": 2}, "num_hidden_layers=2"),
        ({"layers": "auto"}, "layers='auto'.*num_hidden_layers"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"dropout": True}, "dropout=True"),
        ({"initialization": "best"}, "initialization='best'.*least_squares"),
        ({"initialization": "copy", "hidden_size": 8}, "initialization='copy'.*hidden_size"),
        ({"hidden_size": 8, "calibration_data": None}, "calibration_data"),
        ({"hidden_size": 8, "calibration_data": []}, "calibration_data.*empty"),
        ({"hidden_size": 8, "calibration_data": iter([])}, "calibration_data.*list_iterator"),
        ({"hidden_size": 8, "calibration_data": ["a b"]}, "processing_class"),
        ({"hidden_size": 8, "calibration_data": Path("none.txt")}, "calibration_data='none.txt'"),
        ({"hidden_size": 8, "calibration_tokens": 0}, "calibration_tokens=0"),
        ({"num_hidden_layers": 1}, "calibration_data.*initialization"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], message: str) -> None:
    options = {"calibration_data": dataset_for(QA, 32), **options}
    with pytest.raises(ValueError, match=message):
        create_student(model_for(QA, seed=0), **options)


def test_too_few_tokens_are_refused_with_the_number() -> None:
    data = dataset_for(QA, 1)
    with pytest.raises(ValueError, match=r"calibration_data has \d\d tokens.* 32"):
        narrow(model_for(QA, seed=0), calibration_data=data)
    enough = ROWS_PER_BATCH
    narrow(model_for(QA, seed=0), calibration_data=dataset_for(QA, enough))


def test_teachers_that_cannot_be_cut_are_refused() -> None:
    albert = AlbertForQuestionAnswering(
        AlbertConfig(vocab_size=97, hidden_size=16, num_attention_heads=2, intermediate_size=32,
                     embedding_size=8)
    )  # fmt: skip
    with pytest.raises(ValueError, match="albert.*share"):
        create_student(albert, num_hidden_layers=1)
    with pytest.raises(ValueError, match="not a model of transformers"):
        create_student(nn.Linear(2, 2))
    teacher = model_for(QA, seed=0)
    teacher.config.model_type = "new"
    with pytest.raises(ValueError, match="'new'.*bert, roberta"):
        create_student(teacher)


def test_parts_that_are_not_known_are_refused_by_name() -> None:
    teacher: Any = model_for(QA, seed=0)
    teacher.bert.embeddings.register_parameter("scale", nn.Parameter(torch.ones(16)))

    class Odd(type(teacher)):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            size = config.hidden_size
            self.bert.embeddings.register_parameter("scale", nn.Parameter(torch.ones(size)))

    teacher.__class__ = Odd
    with pytest.raises(ValueError, match=r"bert\.embeddings\.scale"):
        narrow(teacher)


# ---- a real teacher --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared")
def test_half_of_a_real_teacher_already_answers() -> None:
    source = SHARED / "models" / "minilm-l6-squad"
    teacher = BertForQuestionAnswering.from_pretrained(source, dtype=torch.float32)
    processor = AutoTokenizer.from_pretrained(source)

    def rows(name: str, number: int) -> list[dict[str, Any]]:
        with gzip.open(SHARED / "data" / "squad" / name) as file:
            articles = json.load(file)["data"]
        pairs = [
            (question["question"], paragraph["context"])
            for article in articles
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
        every = len(pairs) // number
        return [
            dict(processor(*pair, truncation="only_second", max_length=160))
            for pair in pairs[::every][:number]
        ]

    inputs = processor.pad(rows("validation-v1.1.json.gz", 40), return_tensors="pt")
    mask = inputs["attention_mask"].bool()

    def log_probabilities(model: nn.Module) -> Tensor:
        with torch.no_grad():
            outputs = model.eval()(**inputs)
        logits = torch.stack([outputs.start_logits, outputs.end_logits])
        return logits.masked_fill(~mask, -1e9).log_softmax(-1)

    wanted = log_probabilities(teacher)

    def divergence(model: nn.Module) -> float:
        difference = wanted - log_probabilities(model)
        return float((wanted.exp() * difference).sum(-1).mean())

    student = create_student(
        teacher,
        hidden_size=192,
        calibration_data=rows("train-v1.1.json.gz", 64),
        processing_class=processor,
        calibration_tokens=6000,
    )
    first_units = BertForQuestionAnswering(student.config)
    with torch.no_grad():
        for name, weight in first_units.named_parameters():
            whole = teacher.get_parameter(name)
            weight.copy_(whole[tuple(map(slice, weight.shape))])
    assert divergence(student) < 1.0
    assert divergence(first_units) > 3.0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("options", [{}, {"num_hidden_layers": 1}])
def test_a_teacher_on_a_gpu_has_the_same_student_there(options: dict[str, int]) -> None:
    teacher = model_for(QA, seed=0)
    expected = narrow(teacher, **options).state_dict()
    student = narrow(teacher.cuda(), **options)
    assert {parameter.device.type for parameter in student.parameters()} == {"cuda"}
    assert all(torch.equal(value.cpu(), expected[n]) for n, value in student.state_dict().items())
