"""Write test/data/tensorrt_names.json: what TensorRT's and CUDA's real Python bindings say of the names that we use.

    .venv/bin/python test/record_tensorrt_names.py

The wheels with TensorRT's bindings are small (1 MB), and the gigabytes of libraries that they link to are not needed to
look at them: with libraries of those names in which every function returns 0 they import. Takes pip, nm, readelf and
cc, and a Python that all the wheels exist for (3.10 or 3.11).
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from test_tensorrt_names import RECORD, used_names

TENSORRT = {
    '8.6.1': 'tensorrt-bindings==8.6.1',
    '10.3.0': 'tensorrt-cu12-bindings==10.3.0',
    '10.7.0': 'tensorrt-cu12-bindings==10.7.0',
    '10.13.0': 'tensorrt-cu12-bindings==10.13.0.35',
    '11.4.0': 'tensorrt-cu13-bindings==11.4.0.106',
    'RTX 1.7.1': 'tensorrt-rtx-cu13-bindings==1.7.1.116',
}
CUDA = {
    '12.2.1': ['cuda-python==12.2.1'],
    '12.9.10': ['cuda-bindings==12.9.10', 'cuda-pathfinder==1.9.0'],
    '13.5.0': ['cuda-bindings==13.5.0', 'cuda-pathfinder==1.9.0'],
}

# Runs in a Python of its own, which sees nothing but the unpacked wheel: {name: signature, '' without one, or null}.
LOOK_UP = """
import json, re, sys
try:
    import {module} as bindings
except ImportError:
    from cuda import cudart as bindings
found = {{}}
for name in {names!r}:
    thing = bindings
    for part in name.split('.'):
        thing = getattr(thing, part, None)
    # Of an overloaded function the first signature counts; `f(*args, **kwargs)` stands before it.
    signature = re.search(part + r'[(](?![*]).*[)]', thing.__doc__ or '') if callable(thing) else None
    found[name] = None if thing is None else signature.group(0) if signature else ''
json.dump(found, sys.stdout)
"""


def main() -> None:
    record = {'tensorrt': {}, 'cuda': {}}
    for library, wheels in (('tensorrt', TENSORRT), ('cuda', CUDA)):
        for version, names in wheels.items():
            with tempfile.TemporaryDirectory() as folder:
                record[library][version] = look_up(library, names if isinstance(names, list) else [names], Path(folder))
    RECORD.parent.mkdir(exist_ok=True)
    RECORD.write_text(json.dumps(record, indent=1) + '\n')


def look_up(library: str, wheels: list[str], folder: Path) -> dict:
    pip = [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--only-binary', ':all:', '--dest', folder]
    subprocess.run([*pip, *wheels], check=True)
    for wheel in folder.glob('*.whl'):
        zipfile.ZipFile(wheel).extractall(folder)
    module = 'cuda.bindings.runtime'
    if library == 'tensorrt':
        module = next(folder.glob('tensorrt*_bindings')).name
        make_libraries(folder / module)
    code = LOOK_UP.format(module=module, names=used_names(library))
    environment = {**os.environ, 'PYTHONPATH': str(folder), 'LD_LIBRARY_PATH': str(folder / module)}
    done = subprocess.run(
        [sys.executable, '-S', '-c', code], check=True, capture_output=True, text=True, env=environment
    )
    return json.loads(done.stdout)


def make_libraries(package: Path) -> None:
    """Make the libraries that the bindings link to; every function in them returns 0."""

    def read(*command) -> str:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    bindings = next(package.glob('tensorrt*.so'))
    wanted = re.findall(r' U (\w*(?:nvuff|nvcaffe|Infer|NvOnnx|Plugin)\w*)', read('nm', '-D', '-u', bindings))
    source = package / 'nothing.c'
    source.write_text('\n'.join(f'void *{name}(void) {{ return 0; }}' for name in wanted))
    for library in re.findall(r'\[(libnv\w+\.so\.\d+|libtensorrt\w*\.so[.\d]*)\]', read('readelf', '-d', bindings)):
        subprocess.run(
            ['cc', '-shared', '-fPIC', f'-Wl,-soname,{library}', '-o', package / library, source], check=True
        )


if __name__ == '__main__':
    main()
