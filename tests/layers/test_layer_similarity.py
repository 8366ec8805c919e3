"""How alike layers are, and the pairs that follow from it."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_distill.layers.mapping import LayerPair
from hf_distill.layers.similarity import LayerSimilarity, suggest_layer_pairs

quick = settings(deadline=None, max_examples=60, derandomize=True)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_grams(x: Tensor, y: Tensor) -> float:
    """Kornblith et al. 2019, eq. 3 and §3: HSIC of the tokens' Gram matrices."""

    def centred_gram(states: Tensor) -> Tensor:
        """H X Xᵀ H; trace(K H L H) is then the sum over all entries, without a product of n³."""
        gram = states @ states.mT
        rows = gram.mean(dim=0, keepdim=True)
        return gram - rows - rows.mT + gram.mean()

    def hsic(k: Tensor, m: Tensor) -> Tensor:
        return (k * m).sum()

    k, m = centred_gram(x), centred_gram(y)
    return float(hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt())


def unbiased_hsic(x: Tensor, y: Tensor) -> float:
    """Song et al. 2012, eq. 5, entry by entry."""
    n = len(x)
    k, m = x @ x.mT, y @ y.mT
    different = [(i, j) for i in range(n) for j in range(n) if i != j]
    trace = sum(float(k[i, j] * m[i, j]) for i, j in different)
    sums = [sum(float(g[i, j]) for i, j in different) for g in (k, m)]
    rows = [[sum(float(g[i, j]) for j in range(n) if j != i) for i in range(n)] for g in (k, m)]
    products = sum(a * b for a, b in zip(*rows, strict=True))
    return (
        trace + sums[0] * sums[1] / ((n - 1) * (n - 2)) - 2 / (n - 2) * products
    ) / (n * (n - 3))  # fmt: skip


# ---- over batches ------------------------------------------------------------------------------


def hidden_states(tokens: int, *, seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    """Student and teacher layers, ``(1, tokens, width)``, of which some are alike."""
    base = gaussian(1, tokens, 5, seed=seed)

    def layer(width: int, noise: float, number: int) -> Tensor:
        mixed = base @ gaussian(5, width, seed=100 + number)
        return mixed + noise * gaussian(1, tokens, width, seed=1000 * seed + number) + 2

    student = [layer(4, 0.3, 1), layer(4, 2.0, 2)]
    teacher = [layer(6, 0.2, 3), layer(6, 3.0, 4), layer(3, 1.0, 5)]
    return student, teacher


def test_similarity_is_the_formula() -> None:
    student, teacher = hidden_states(9)
    similarity = LayerSimilarity()
    similarity.add(student, teacher)
    matrix = similarity.matrix()
    assert matrix.shape == (2, 3) and matrix.dtype == torch.float64
    for i, x in enumerate(student):
        for j, y in enumerate(teacher):
            own = unbiased_hsic(x[0], x[0]) * unbiased_hsic(y[0], y[0])
            expected = unbiased_hsic(x[0], y[0]) / math.sqrt(own)
            assert float(matrix[i, j]) == pytest.approx(expected, abs=1e-12)


def test_means_over_batches_weigh_by_tokens() -> None:
    batches = [hidden_states(tokens, seed=tokens) for tokens in (6, 17)]
    similarity = LayerSimilarity()
    for student, teacher in batches:
        similarity.add(student, teacher)
    assert similarity.tokens == 23

    def mean(one: int, other: int, layers: tuple[int, int]) -> float:
        """Over the batches, of student (0) or teacher (1) layers."""
        pairs = [(batch[one][layers[0]][0], batch[other][layers[1]][0]) for batch in batches]
        return sum(len(x) * unbiased_hsic(x, y) for x, y in pairs) / 23

    for i in range(2):
        for j in range(3):
            own = math.sqrt(mean(0, 0, (i, i)) * mean(1, 1, (j, j)))
            expected = mean(0, 1, (i, j)) / own
            assert float(similarity.matrix()[i, j]) == pytest.approx(expected, abs=1e-12)


def test_groups_and_batches_agree_with_all_tokens_at_once() -> None:
    student, teacher = hidden_states(3000)
    small = LayerSimilarity(group_size=64)
    for part in range(3):
        tokens = slice(1000 * part, 1000 * (part + 1))
        small.add([x[:, tokens] for x in student], [y[:, tokens] for y in teacher])
    assert small.tokens == 3000
    for i, x in enumerate(student):
        for j, y in enumerate(teacher):
            whole = by_grams(x[0], y[0])
            assert float(small.matrix()[i, j]) == pytest.approx(whole, abs=0.02)


def test_unrelated_layers_are_near_zero_however_few_the_tokens() -> None:
    x, y = gaussian(1, 400, 300), gaussian(1, 400, 300, seed=1)
    similarity = LayerSimilarity(group_size=100)
    similarity.add([x], [y])
    assert by_grams(x[0], y[0]) > 0.4
    assert abs(float(similarity.matrix())) < 0.02


def similarity_of(x: Tensor, y: Tensor) -> float:
    similarity = LayerSimilarity()
    similarity.add([x[None]], [y[None]])
    return float(similarity.matrix())


def test_blind_to_rotation_scale_and_shift() -> None:
    x, y = gaussian(50, 6), gaussian(50, 6, seed=1)
    rotation = torch.linalg.qr(gaussian(6, 6, seed=2)).Q
    same = similarity_of(x, y)
    assert similarity_of(7 * x @ rotation + 1000, y) == pytest.approx(same, abs=1e-9)
    assert similarity_of(x, x @ rotation) == pytest.approx(1.0)
    stretched = x @ torch.diag(torch.tensor([10.0] + 5 * [1.0], dtype=torch.float64))
    assert similarity_of(x, stretched) < 0.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_is_that_of_the_rounded_values(dtype: torch.dtype) -> None:
    """Far from zero a float32 covariance would have lost its digits."""
    x, y = (gaussian(300, 8, seed=seed).mul(0.5).add(300).to(dtype) for seed in (0, 1))
    exact = similarity_of(x.double() - 300, y.double() - 300)
    assert similarity_of(x, y) == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize("content", [0.0, 1e6, math.nan, math.inf])
def test_padding_changes_nothing(content: float) -> None:
    student, teacher = hidden_states(20)
    mask = torch.zeros(2, 15, dtype=torch.bool)
    mask[0, :12] = mask[1, 7:] = True

    def padded(states: Tensor) -> Tensor:
        result = torch.full((2, 15, states.shape[-1]), content, dtype=torch.float64)
        result[mask] = states[0]
        return result

    plain, masked = LayerSimilarity(), LayerSimilarity()
    plain.add(student, teacher)
    masked.add(list(map(padded, student)), list(map(padded, teacher)), token_mask=mask)
    assert masked.tokens == 20
    torch.testing.assert_close(masked.matrix(), plain.matrix())


def test_identical_layers_are_one_and_constant_layers_zero() -> None:
    states = gaussian(1, 40, 6).float()
    similarity = LayerSimilarity(group_size=10)
    similarity.add([states, torch.ones(1, 40, 2)], [states * 5 + 3])
    torch.testing.assert_close(
        similarity.matrix(), torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    )


def test_a_huge_common_offset_costs_no_digits() -> None:
    """As in trained encoders, where a few of the features are far from zero."""
    student, teacher = hidden_states(200)
    plain, shifted = LayerSimilarity(), LayerSimilarity()
    plain.add(student, teacher)
    shifted.add([(x + 1000).float() for x in student], [y - 1000 for y in teacher])
    torch.testing.assert_close(shifted.matrix(), plain.matrix(), rtol=0, atol=1e-4)


def test_too_few_tokens_are_left_out_and_none_is_an_error() -> None:
    similarity = LayerSimilarity()
    similarity.add([gaussian(1, 3, 2)], [gaussian(1, 3, 2)])
    assert similarity.tokens == 0
    with pytest.raises(ValueError, match="at least 4 valid tokens"):
        similarity.matrix()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite(bad: float) -> None:
    states = gaussian(1, 9, 2)
    states[0, 4, 1] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        LayerSimilarity().add([gaussian(1, 9, 2)], [states])


@pytest.mark.parametrize("tokens", [(2, 5), (1, 9)])
def test_other_tokens_are_refused(tokens: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"same tokens.*\(1, 10\).*layer_mapping"):
        LayerSimilarity().add([torch.zeros(1, 10, 2)], [torch.zeros(*tokens, 2)])


def test_groups_too_small() -> None:
    with pytest.raises(ValueError, match="group_size .* is 3"):
        LayerSimilarity(group_size=3)


# ---- pairs -------------------------------------------------------------------------------------


@quick
@given(data=st.data())
def test_suggestion_is_the_best_of_all_rising_ones(data: st.DataObject) -> None:
    students = data.draw(st.integers(1, 5))
    teachers = data.draw(st.integers(students, 8))
    values = st.floats(-1, 1).map(lambda value: round(value, 2))
    row = st.lists(values, min_size=teachers + 1, max_size=teachers + 1)
    rows = data.draw(st.lists(row, min_size=students + 1, max_size=students + 1))
    pairs = suggest_layer_pairs(torch.tensor(rows, dtype=torch.float64))

    assert pairs[0] == LayerPair(0, 0)
    assert [pair.student for pair in pairs] == list(range(students + 1))
    chosen = tuple(pair.teacher for pair in pairs[1:])
    candidates = list(combinations(range(1, teachers + 1), students))
    assert chosen in candidates

    def total(layers: tuple[int, ...]) -> float:
        means = [sum(column) / len(column) for column in zip(*rows, strict=True)]
        return sum(rows[i][layer] - means[layer] for i, layer in enumerate(layers, start=1))

    assert total(chosen) == pytest.approx(max(map(total, candidates)), abs=1e-12)


def test_a_student_cut_from_the_teacher_finds_its_layers() -> None:
    """Each layer adds noise, so layers are most like themselves, and neighbours are alike."""
    teacher = [gaussian(1, 400, 8)]
    for layer in range(1, 9):
        teacher.append(teacher[-1] + 0.5 * gaussian(1, 400, 8, seed=layer))
    student = [teacher[i] + 0.1 * gaussian(1, 400, 8, seed=50 + i) for i in (0, 3, 4, 8)]
    similarity = LayerSimilarity()
    similarity.add(student, teacher)
    pairs = suggest_layer_pairs(similarity.matrix())
    assert pairs == [(0, 0), (1, 3), (2, 4), (3, 8)]
    assert all(isinstance(pair, LayerPair) for pair in pairs)


def test_a_teacher_whose_first_layers_resemble_everything() -> None:
    """Measured on a 6-layer SQuAD teacher and a student of its layers 1, 3 and 5."""
    similarity = torch.tensor(
        [
            [1.00, 0.93, 0.85, 0.74, 0.65, 0.45, 0.21],
            [0.93, 1.00, 0.94, 0.82, 0.73, 0.51, 0.24],
            [0.85, 0.94, 0.94, 0.90, 0.82, 0.59, 0.30],
            [0.69, 0.76, 0.77, 0.79, 0.77, 0.67, 0.39],
        ]
    )
    assert suggest_layer_pairs(similarity) == [(0, 0), (1, 1), (2, 3), (3, 5)]


def test_a_student_of_one_layer_gets_what_the_embeddings_resemble_less() -> None:
    similarity = torch.tensor([[1.0, 0.8, 0.6, 0.3], [0.7, 0.8, 0.75, 0.35]])
    assert suggest_layer_pairs(similarity) == [(0, 0), (1, 2)]


def test_suggestion_of_equally_good_ones_is_fixed() -> None:
    assert suggest_layer_pairs(torch.ones(3, 5)) == [(0, 0), (1, 1), (2, 2)]


@pytest.mark.parametrize("seed", range(5))
def test_suggestion_does_not_hang_on_the_last_digits(seed: int) -> None:
    """As sums of another order on another processor would have them."""
    noise = torch.Generator().manual_seed(seed)
    similarity = 0.5 + 1e-13 * torch.rand(4, 8, generator=noise, dtype=torch.float64)
    assert suggest_layer_pairs(similarity) == [(0, 0), (1, 1), (2, 2), (3, 3)]


def test_suggestion_needs_a_deep_enough_teacher() -> None:
    with pytest.raises(ValueError, match="'auto'.*teacher has 2 and the student 3"):
        suggest_layer_pairs(torch.zeros(4, 3))


def test_suggestion_needs_finite_similarities() -> None:
    with pytest.raises(ValueError, match="NaN"):
        suggest_layer_pairs(torch.tensor([[1.0, 0.0], [0.0, math.nan]]))
