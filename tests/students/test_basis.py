"""The map from the teacher's hidden states to the student's, on the module and on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import model_for
from transformers import AutoModel

from hf_distill.students import basis_of, save_basis
from hf_distill.students.basis import BASIS_FILE, keep_basis


def test_a_student_keeps_its_basis_on_the_module_and_on_disk(tmp_path: Path) -> None:
    student = model_for("question-answering", seed=0)
    names = set(student.state_dict())
    keep_basis(student, torch.arange(32.0, dtype=torch.float64).view(16, 2).T)
    assert set(student.state_dict()) == names
    student.save_pretrained(tmp_path)
    save_basis(student, tmp_path)
    expected = torch.arange(32.0).view(16, 2).T
    for model in (student, AutoModel.from_pretrained(tmp_path)):
        basis = basis_of(model)
        assert basis is not None
        torch.testing.assert_close(basis, expected, rtol=0, atol=0)


def test_any_other_model_has_none(tmp_path: Path) -> None:
    student = model_for("question-answering", seed=0)
    assert basis_of(student) is None
    save_basis(student, tmp_path)
    assert list(tmp_path.iterdir()) == []
    student.save_pretrained(tmp_path)
    assert basis_of(AutoModel.from_pretrained(tmp_path)) is None


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    model_for("question-answering", seed=0).save_pretrained(tmp_path)
    (tmp_path / BASIS_FILE).write_bytes(b"x" * 20)
    with pytest.raises(ValueError, match=BASIS_FILE):
        basis_of(AutoModel.from_pretrained(tmp_path))
