"""The CPU of this machine, as Linux describes it: its name, and the extensions that make networks fast."""

import platform
from dataclasses import dataclass
from pathlib import Path

# By the kernel's names, of x86 and of ARM; the rest says nothing about the speed of a network.
EXTENSIONS = (
    *('avx2', 'avx_vnni', 'avx512f', 'avx512_vnni', 'avx512_bf16', 'avx512_fp16', 'amx_int8', 'amx_bf16', 'amx_fp16'),
    *('asimd', 'asimdhp', 'asimddp', 'i8mm', 'bf16', 'sve', 'sve2'),
)


@dataclass(frozen=True)
class Cpu:
    """A CPU.

    Attributes:
        name: its model; on ARM that of the board, with implementer and part of each kind of core.
        flags: all that it can do, by the kernel's names.
        foreign: the description is that of an x86 CPU on ARM, as some emulators show that of their host.
    """

    name: str
    flags: frozenset[str]
    foreign: bool = False

    @property
    def extensions(self) -> list[str]:
        """Return those of EXTENSIONS that it has, in their order."""
        return [name for name in EXTENSIONS if name in self.flags]


def find_cpu(cpuinfo: Path = Path('/proc/cpuinfo'), board: Path = Path('/proc/device-tree/model')) -> Cpu:
    """Return the CPU of this machine; what cannot be read is left out."""
    # An emulator may show the host's cpuinfo: the flags of another architecture stand under another key.
    arm = platform.machine() == 'aarch64'
    models, cores, flags, foreign = set(), [], set(), False
    for line in _read(cpuinfo).splitlines():
        key, _, value = (part.strip() for part in line.partition(':'))
        if key == 'model name':
            models.add(value)
        elif key == 'CPU implementer':
            cores.append(value)
        elif key == 'CPU part' and cores:
            cores[-1] += f' {value}'
        elif key == ('Features' if arm else 'flags'):
            flags.update(value.split())
        elif key == 'flags':
            foreign = True
    names = sorted(models) or [_read(board).strip('\0\n') or platform.machine()]
    if arm:
        names += sorted(f'({core})' for core in set(cores))
    return Cpu(' '.join(names), frozenset(flags), foreign)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding='utf-8', errors='replace')
    except OSError:
        return ''
