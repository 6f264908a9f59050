"""The example that measures what students could learn: its descriptors are those of the networks it names."""

import numpy as np
import pytest

pytest.importorskip('torch', reason='torch is not installed')

from edgepoint2_ros.distillation.losses import principal_basis  # noqa: E402
from edgepoint2_ros.evaluation.methods import EdgePoint2Method  # noqa: E402


@pytest.fixture
def example(import_example):
    """The example, as a module."""
    return import_example('compare_teachers')


def test_a_model_taught_by_itself_keeps_its_descriptors(example, photograph):
    image = np.ascontiguousarray(photograph[:347, :461])  # no multiple of 32
    detector = EdgePoint2Method('T-32', 300)
    teachers = example.Teachers(['T-32', 'S-64'], detector)
    features = detector.extract(image)
    described = example.Taught('T-32', teachers, slice(0, 32), None).extract(image)
    np.testing.assert_array_equal(described.xy, features.xy)
    # The model samples at the pixel of its maximum, this at the refined position.
    assert (described.descriptors * features.descriptors).sum(axis=1).min() > 0.999


def test_principal_components_keep_the_similarities_of_those_joined(example, photograph):
    teachers = example.Teachers(['T-32', 'S-64'], EdgePoint2Method('T-32', 300))
    joined = teachers.describe(photograph, teachers.find(photograph.shape, photograph.tobytes())[0].xy)
    assert joined.shape[1] == 96
    basis = principal_basis(example.torch.from_numpy(joined), 64).numpy()
    whole = example.Taught('both', teachers, slice(0, 96), None).extract(photograph).descriptors
    reduced = example.Taught('both', teachers, slice(0, 96), basis).extract(photograph)
    assert reduced.descriptors.shape[1] == 64
    assert reduced.model == 'both to 64'
    np.testing.assert_allclose(reduced.descriptors @ reduced.descriptors.T, whole @ whole.T, atol=0.05)
