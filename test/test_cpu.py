import pytest

from edgepoint2_ros.cpu import find_cpu

XEON = """\
processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Platinum 8481C
flags\t\t: fpu sse2 avx2 avx512f avx512_vnni avx512_bf16 amx_bf16 amx_tile amx_int8

processor\t: 1
model name\t: Intel(R) Xeon(R) Platinum 8481C
flags\t\t: fpu sse2 avx2 avx512f avx512_vnni avx512_bf16 amx_bf16 amx_tile amx_int8
"""
TWO_KINDS = """\
processor\t: 0
Features\t: fp asimd evtstrm aes fphp asimdhp asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: 0xd05

processor\t: 1
Features\t: fp asimd evtstrm aes fphp asimdhp asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: 0xd0b
"""


@pytest.fixture
def describe(tmp_path, monkeypatch):
    """Return a function that finds the CPU which the given files describe."""

    def describe(machine, cpuinfo, board=None):
        monkeypatch.setattr('platform.machine', lambda: machine)
        (tmp_path / 'cpuinfo').write_text(cpuinfo)
        if board:
            (tmp_path / 'model').write_text(board + '\0')
        return find_cpu(tmp_path / 'cpuinfo', tmp_path / 'model')

    return describe


def test_x86_has_a_name_and_its_extensions(describe):
    cpu = describe('x86_64', XEON)
    assert cpu.name == 'Intel(R) Xeon(R) Platinum 8481C'
    assert cpu.extensions == ['avx2', 'avx512f', 'avx512_vnni', 'avx512_bf16', 'amx_int8', 'amx_bf16']
    assert 'sse2' in cpu.flags


def test_arm_is_named_by_its_board_and_its_cores(describe):
    cpu = describe('aarch64', TWO_KINDS, 'Some Board Rev 1.0')
    assert cpu.name == 'Some Board Rev 1.0 (0x41 0xd05) (0x41 0xd0b)'
    assert cpu.extensions == ['asimd', 'asimdhp', 'asimddp']


def test_arm_without_a_device_tree_has_the_architecture_for_a_name(describe):
    assert describe('aarch64', TWO_KINDS).name == 'aarch64 (0x41 0xd05) (0x41 0xd0b)'


def test_an_emulated_machine_has_not_what_the_host_has(describe):
    assert describe('aarch64', XEON).flags == frozenset()


def test_without_files_the_architecture_is_left(describe, tmp_path):
    assert find_cpu(tmp_path / 'nothing', tmp_path / 'nothing').flags == frozenset()


def test_this_machine_is_known():
    assert find_cpu().name


def test_the_cpuinfo_of_an_emulators_host_is_recognised(describe):
    assert describe('aarch64', XEON).foreign
    assert not describe('aarch64', TWO_KINDS).foreign
    assert not describe('x86_64', XEON).foreign
