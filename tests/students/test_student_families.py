"""Every family: the whole teacher comes back, layers are copied, narrow students are near."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from zoo import AUTO_MODELS, PAIRS, zoo_dataset, zoo_inputs, zoo_model

from hf_distill import create_student
from hf_distill.students.families import FAMILIES
from hf_distill.students.sizes import set_dropout
from hf_distill.students.weights import find

CASES = [(task, name) for task, name in PAIRS if name in FAMILIES]
NARROWED = [(task, name) for task, name in CASES if FAMILIES[name].depth_only is None]


def logits(model: Any, task: str) -> list[Tensor]:
    rows = zoo_dataset(task, labels=False, target=True)
    with torch.no_grad():
        outputs = model(**zoo_inputs(model, rows))
    return [value for name, value in outputs.items() if "logits" in name]


def test_a_place_for_each_layer_is_declared() -> None:
    tested_apart = {
        *("mistral", "qwen3", "camembert", "longt5"),
        *("mt5", "mbart", "marian", "pegasus"),
    }
    assert {name for _, name in CASES} >= FAMILIES.keys() - tested_apart


def test_the_page_lists_the_families() -> None:
    page = (Path(__file__).parents[2] / "docs" / "which-students.md").read_text(encoding="utf-8")
    table = page.split("| model types |")[1].split("\n\n")[0]
    rows = [row.split("|") for row in table.splitlines()[2:]]
    widths = {name: row[3].strip() for row in rows for name in row[1].split("`")[1::2]}
    assert widths == {
        name: "no" if family.depth_only else "yes" for name, family in FAMILIES.items()
    }


def data(task: str) -> Any:
    return zoo_dataset(task, rows=24, seed=5)


@pytest.mark.parametrize(("task", "name"), CASES)
def test_the_whole_teacher_comes_back(task: str, name: str) -> None:
    teacher = zoo_model(task, name, seed=0, layers=3).eval()
    student = create_student(teacher, num_hidden_layers=3)
    assert type(student) is type(teacher)
    for one, other in zip(logits(student, task), logits(teacher, task), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize(("task", "name"), CASES)
def test_without_dropout_a_student_computes_in_training_as_in_evaluation(
    task: str, name: str, tmp_path: Path
) -> None:
    teacher = zoo_model(task, name, seed=0, layers=2)
    set_dropout(teacher.config, 0.4)
    teacher = type(teacher)(teacher.config).eval()
    noisy = create_student(teacher, num_hidden_layers=1).train()
    quiet = create_student(teacher, num_hidden_layers=1, dropout=0.0).train()
    torch.manual_seed(0)
    one, other = (logits(noisy, task)[0] for _ in range(2))
    assert not torch.equal(one, other)
    one = logits(quiet, task)[0]
    torch.testing.assert_close(one, logits(quiet.eval(), task)[0])
    quiet.save_pretrained(tmp_path)
    loaded = getattr(transformers, AUTO_MODELS[task]).from_pretrained(tmp_path).train()
    torch.testing.assert_close(logits(loaded, task)[0], one)
    assert any(value == 0.4 for value in vars(teacher.config).values())


@pytest.mark.parametrize(("task", "name"), NARROWED)
def test_a_narrow_student_loads_like_any_other(task: str, name: str, tmp_path: Path) -> None:
    teacher = zoo_model(task, name, seed=0, layers=3).eval()
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    student = create_student(
        teacher, num_hidden_layers=2, hidden_size=8, calibration_data=data(task)
    )
    assert student.config.hidden_size == 8
    assert student.config.num_hidden_layers == 2
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, before[key])
    student.save_pretrained(tmp_path)
    auto_model = getattr(transformers, AUTO_MODELS[task])
    loaded, info = auto_model.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for one, other in zip(logits(loaded, task), logits(student, task), strict=True):
        assert torch.isfinite(one).all()
        torch.testing.assert_close(one, other)
    output = student.get_output_embeddings()
    wide_output = teacher.get_output_embeddings()
    if output is not None and wide_output.weight is teacher.get_input_embeddings().weight:
        assert output.weight is student.get_input_embeddings().weight


@pytest.mark.parametrize(("task", "name"), CASES)
def test_layers_are_copied_and_run_as_before(task: str, name: str) -> None:
    """Against a teacher from which the layer was taken out by hand."""
    teacher = zoo_model(task, name, seed=0, layers=3).eval()
    student = create_student(teacher, layers=[0, 2])
    teacher.config.use_cache = False  # which has a place for each layer
    for stack in (FAMILIES[name].stack, FAMILIES[name].decoder):
        if stack is not None:
            del find(teacher.base_model, stack.layers)[1]
    if getattr(teacher.config, "layer_types", None):
        del teacher.config.layer_types[1]
    weights = teacher.state_dict()
    assert student.state_dict().keys() == weights.keys()
    for key, value in student.state_dict().items():
        assert torch.equal(value, weights[key]), key
    for one, other in zip(logits(student, task), logits(teacher, task), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("task", "name"),
    [("summarization", "t5"), ("text-generation", "llama"), ("text-classification", "modernbert")],
)
def test_what_a_half_precision_keeps_in_float32_stays(
    task: str, name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """T5's output maps, and the angles of rotary positions, as ``from_pretrained`` loads them."""
    whole = zoo_model(task, name, seed=0, layers=3)
    whole.save_pretrained(tmp_path / "teacher")
    teacher = type(whole).from_pretrained(tmp_path / "teacher", dtype=dtype)
    for options in ({"num_hidden_layers": 2}, {"hidden_size": 8, "calibration_data": data(task)}):
        student = create_student(teacher, calibration_tokens=80, **options)
        student.save_pretrained(tmp_path)
        loaded = type(whole).from_pretrained(tmp_path, dtype=dtype)
        for kind in ("named_parameters", "named_buffers"):
            own = dict(getattr(student, kind)())
            for key, value in getattr(loaded, kind)():
                assert own[key].dtype == value.dtype, key
                assert torch.equal(own[key], value), key


@pytest.mark.parametrize("task", ["text-classification", "fill-mask"])
@pytest.mark.parametrize("name", ["electra", "deberta-v2"])
def test_a_student_as_wide_as_the_teachers_embeddings_has_no_projection(
    task: str, name: str
) -> None:
    """Half of electra-small, whose embeddings have half of its width."""
    teacher = zoo_model(task, name, seed=0, layers=2, embedding_size=8).eval()
    with torch.no_grad():  # whose hidden states have no more dimensions than its embeddings
        for parameter in teacher.base_model.encoder.layer.parameters():
            parameter.mul_(0.1)
    path = FAMILIES[name].stack.projection
    student = create_student(
        teacher, hidden_size=8, calibration_data=data(task), calibration_tokens=200
    )
    assert find(teacher.base_model, path) is not None
    assert find(student.base_model, path) is None
    one, other = (logits(model, task)[0].flatten() for model in (student, teacher))
    assert torch.corrcoef(torch.stack([one, other]))[0, 1] > 0.9


def test_what_a_norm_takes_away_is_not_in_a_table_without_projection() -> None:
    """Two tokens differ by a constant, which ELECTRA's norm before the projection removes."""
    task = "text-classification"
    teacher = zoo_model(task, "electra", seed=0, layers=2, embedding_size=8).eval()
    table = teacher.get_input_embeddings().weight
    with torch.no_grad():
        table[7] = table[6] + 3
    student = create_student(
        teacher, hidden_size=8, calibration_data=data(task), calibration_tokens=200
    )
    rows = student.get_input_embeddings().weight
    torch.testing.assert_close(rows[7], rows[6], rtol=0, atol=1e-5)
    assert (rows[8] - rows[6]).abs().max() > 1e-2
