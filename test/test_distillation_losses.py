import math

import pytest

torch = pytest.importorskip('torch', reason='torch is not installed: training cannot be tested')

from edgepoint2_ros.distillation.losses import (  # noqa: E402
    contrastive_loss,
    cosine_distance,
    detection_loss,
    low_rank,
    orthogonal_procrustes_loss,
    principal_basis,
    procrustes,
    relational_loss,
)


def unit_rows(count, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, size, generator=generator), dim=1)


def random_rotation(size, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, generator=generator))[0]


def turn(degrees):
    angle = math.radians(degrees)
    return torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


class TestLowRank:
    def test_keeps_the_inner_products_of_descriptors_that_lie_in_a_subspace(self):
        inside = unit_rows(100, 32) @ random_rotation(64)[:32]
        reduced = low_rank(inside, 32)
        assert reduced.shape == (100, 32)
        torch.testing.assert_close(reduced @ reduced.T, inside @ inside.T, atol=1e-5, rtol=0)

    def test_is_the_truncated_singular_value_decomposition_with_rows_renormalised(self):
        rows = unit_rows(200, 64)
        u, s, _ = torch.linalg.svd(rows, full_matrices=False)
        expected = torch.nn.functional.normalize(u[:, :48] * s[:48], dim=1)
        reduced = low_rank(rows, 48)
        torch.testing.assert_close(reduced @ reduced.T, expected @ expected.T, atol=1e-4, rtol=0)

    def test_refuses_more_values_than_there_are(self):
        with pytest.raises(ValueError, match='of 32 values to 48'):
            low_rank(unit_rows(10, 32), 48)


class TestPrincipalBasis:
    def test_spans_the_subspace_that_the_descriptors_lie_in(self):
        inside = unit_rows(100, 32) @ random_rotation(64)[:32]
        basis = principal_basis(inside, 32)
        torch.testing.assert_close(basis.T @ basis, torch.eye(32), atol=1e-5, rtol=0)
        torch.testing.assert_close(inside @ basis @ basis.T, inside, atol=1e-5, rtol=0)

    def test_has_the_most_telling_direction_last(self):
        rows = unit_rows(200, 8) * torch.arange(1.0, 9.0)
        assert (rows @ principal_basis(rows, 4)).square().sum(dim=0).diff().min() > 0


class TestProcrustes:
    def test_of_equal_descriptors_is_the_identity(self):
        rows = unit_rows(50, 8)
        torch.testing.assert_close(procrustes(rows, rows), torch.eye(8), atol=1e-5, rtol=0)

    def test_finds_a_known_rotation(self):
        rows = unit_rows(50, 2)
        torch.testing.assert_close(procrustes(rows, rows @ turn(30)), turn(30), atol=1e-5, rtol=0)

    def test_is_orthogonal_and_better_than_any_neighbour(self):
        source, target = unit_rows(80, 6, 1), unit_rows(80, 6, 2)
        best = procrustes(source, target)
        torch.testing.assert_close(best @ best.T, torch.eye(6), atol=1e-5, rtol=0)
        distance = torch.linalg.norm(source @ best - target)
        for seed in range(20):
            generator = torch.Generator().manual_seed(seed)
            skew = torch.randn(6, 6, generator=generator) * 0.05
            neighbour = best @ torch.matrix_exp(skew - skew.T)
            assert torch.linalg.norm(source @ neighbour - target) > distance


class TestOrthogonalProcrustesLoss:
    def test_is_zero_for_any_rotation_and_any_length_of_the_students_rows(self):
        teacher = unit_rows(100, 32)
        lengths = torch.linspace(0.1, 10, 100)[:, None]
        loss = orthogonal_procrustes_loss(teacher, teacher @ random_rotation(32) * lengths)
        assert loss.item() == pytest.approx(0, abs=1e-5)

    def test_does_not_change_when_the_student_is_rotated(self):
        teacher, student = unit_rows(100, 16, 1), unit_rows(100, 16, 2)
        before = orthogonal_procrustes_loss(teacher, student)
        after = orthogonal_procrustes_loss(teacher, student @ random_rotation(16))
        assert after.item() == pytest.approx(before.item(), abs=1e-5)

    def test_has_its_closed_form_for_two_rows_in_the_plane(self):
        # Teacher rows 90 degrees apart, student rows 60: the best rotation leaves 15 degrees on either side.
        teacher = torch.eye(2)
        student = torch.stack([torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0]) @ turn(-60)])
        loss = orthogonal_procrustes_loss(teacher, student)
        assert loss.item() == pytest.approx(1 - math.cos(math.radians(15)), abs=1e-6)

    def test_teaches_the_student_and_not_the_teacher(self):
        teacher, student = unit_rows(50, 8, 1), unit_rows(50, 8, 2).requires_grad_()
        before = orthogonal_procrustes_loss(teacher, student)
        (gradient,) = torch.autograd.grad(before, student)
        assert orthogonal_procrustes_loss(teacher, student - 5 * gradient) < before


class TestCosineDistance:
    @pytest.mark.parametrize('degrees', [0, 45, 90, 180])
    def test_is_one_minus_the_cosine(self, degrees):
        rows = unit_rows(20, 2)
        loss = cosine_distance(rows, 3 * rows @ turn(degrees))
        assert loss.item() == pytest.approx(1 - math.cos(math.radians(degrees)), abs=1e-5)
        assert cosine_distance(rows, rows).item() == pytest.approx(0, abs=1e-6)


class TestContrastiveLoss:
    far_apart = torch.arange(8.0)[:, None] * torch.tensor([100.0, 0.0])

    def test_of_orthogonal_descriptors_has_its_closed_form(self):
        rows = torch.eye(8)
        loss = contrastive_loss(rows, rows, self.far_apart, self.far_apart, temperature=0.5)
        assert loss.item() == pytest.approx(math.log(math.exp(2) + 7) - 2, abs=1e-5)

    def test_of_descriptors_that_are_all_alike_is_the_logarithm_of_their_number(self):
        rows = torch.ones(8, 4)
        loss = contrastive_loss(rows, rows, self.far_apart, self.far_apart)
        assert loss.item() == pytest.approx(math.log(8), abs=1e-5)

    def test_neighbours_are_no_opponents(self):
        rows = torch.ones(8, 4)
        one_place = torch.zeros(8, 2)
        assert contrastive_loss(rows, rows, one_place, self.far_apart).item() == pytest.approx(0, abs=1e-6)
        assert contrastive_loss(rows, rows, self.far_apart, one_place).item() == pytest.approx(0, abs=1e-6)

    def test_is_the_same_with_the_views_exchanged(self):
        a, b = unit_rows(8, 4, 1), unit_rows(8, 4, 2)
        one = contrastive_loss(a, b, self.far_apart, self.far_apart)
        assert contrastive_loss(b, a, self.far_apart, self.far_apart).item() == pytest.approx(one.item(), abs=1e-6)


class TestRelationalLoss:
    def test_is_zero_for_any_rotation_and_any_length_of_the_students_rows(self):
        points, others = unit_rows(20, 8, 1), unit_rows(30, 8, 2)
        rotation = random_rotation(8)
        loss = relational_loss(points @ rotation * 3, others @ rotation * 0.5, points, others)
        assert loss.item() == pytest.approx(0, abs=1e-5)

    def test_compares_descriptors_of_different_sizes(self):
        points, others = unit_rows(20, 4, 1), unit_rows(30, 4, 2)
        longer = random_rotation(8)[:4]
        assert relational_loss(points, others, points @ longer, others @ longer).item() == pytest.approx(0, abs=1e-5)

    def test_of_a_student_that_finds_all_places_alike_has_its_closed_form(self):
        # The teacher prefers one place of two: e against 1.
        teacher, others = torch.tensor([[1.0, 0.0]]), torch.eye(2)
        student, alike = torch.ones(1, 3), torch.ones(2, 3)
        p = math.e / (math.e + 1)
        expected = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
        loss = relational_loss(student, alike, teacher, others, temperature=1)
        assert loss.item() == pytest.approx(expected, abs=1e-6)

    def test_teaches_the_student_and_not_the_teacher(self):
        student, own = unit_rows(20, 4, 1).requires_grad_(), unit_rows(30, 4, 2).requires_grad_()
        teacher, others = unit_rows(20, 8, 3), unit_rows(30, 8, 4)
        before = relational_loss(student, own, teacher, others)
        for gradient, rows in zip(torch.autograd.grad(before, (student, own)), (student, own), strict=True):
            rows.data -= 0.1 * gradient
        assert relational_loss(student, own, teacher, others) < before


class TestDetectionLoss:
    def test_is_zero_for_equal_scores_and_positive_otherwise(self):
        generator = torch.Generator().manual_seed(0)
        teacher = torch.randn(2, 1, 32, 32, generator=generator) * 4 - 6
        assert detection_loss(teacher, teacher).item() == pytest.approx(0, abs=1e-5)
        assert detection_loss(teacher + 0.5, teacher) > 0.01

    def test_does_not_care_how_surely_there_is_no_keypoint(self):
        teacher, student = torch.full((1, 1, 8, 8), -30.0), torch.full((1, 1, 8, 8), -20.0)
        assert detection_loss(student, teacher).item() == pytest.approx(0, abs=1e-5)

    def test_of_one_pixel_has_its_closed_form(self):
        teacher, student = torch.tensor([[0.0]]), torch.tensor([[2.0]])
        p, q = 0.5, 1 / (1 + math.exp(-2))
        divergence = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
        # The teacher's mass is below one pixel and counts as one; smooth L1 of 2 is 1.5.
        assert detection_loss(student, teacher).item() == pytest.approx(divergence + 1.5, abs=1e-5)
