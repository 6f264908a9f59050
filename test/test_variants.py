import pytest

from edgepoint2_ros.errors import ModelError
from edgepoint2_ros.models.variants import NAMES, VARIANTS, find_variant


def test_there_are_14_variants_and_no_t_64():
    assert len(VARIANTS) == len(set(NAMES)) == 14
    assert 'T-64' not in NAMES


@pytest.mark.parametrize('name', ['T-32', 'T32', 't-32', 't32', ' t_32 '])
def test_names_are_read_as_people_write_them(name):
    assert find_variant(name).name == 'T-32'


@pytest.mark.parametrize('name', ['T-64', 'X-32', 'T', '', 'T-32-1', 'superpoint', None])
def test_an_unknown_name_is_refused_with_the_14_listed(name):
    with pytest.raises(ModelError) as error:
        find_variant(name)
    assert all(known in str(error.value) for known in NAMES)
    assert repr(name) in str(error.value)
