"""The names of TensorRT and of CUDA that the engine uses, held against the real bindings of 8.6 to 11.

What those bindings say is recorded by record_tensorrt_names.py, to be run again when a name is added.
"""

import ast
import json
import re
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECORD = Path(__file__).parent / 'data' / 'tensorrt_names.json'
SOURCES = ROOT / 'edgepoint2_ros' / 'engines' / 'tensorrt'

# What the engine's variables hold, and what their methods and attributes return.
VARIABLES = {
    'tensorrt': 'tensorrt.',
    '_tensorrt': 'tensorrt.',
    'flags': 'tensorrt.NetworkDefinitionCreationFlag.',
    'severity': 'tensorrt.ILogger.Severity.',
    'builder': 'tensorrt.Builder.',
    'network': 'tensorrt.INetworkDefinition.',
    'parser': 'tensorrt.OnnxParser.',
    'config': 'tensorrt.IBuilderConfig.',
    'layer': 'tensorrt.ILayer.',
    'tensor': 'tensorrt.ITensor.',
    '_runtime': 'tensorrt.Runtime.',
    '_engine': 'tensorrt.ICudaEngine.',
    '_context': 'tensorrt.IExecutionContext.',
    'cudart': 'cuda.',
    '_cudart': 'cuda.',
}
RESULTS = {'get_output': 'ITensor.', 'get_error': 'ParserError.', 'get_timing_cache': 'ITimingCache.'}

# Used only where they exist: 8.6 has no strongly typed networks, and later releases need none of the rest.
ONLY_8 = {
    'NetworkDefinitionCreationFlag.EXPLICIT_BATCH',
    'BuilderFlag.FP16',
    'BuilderFlag.OBEY_PRECISION_CONSTRAINTS',
    'ILayer.precision',
    'ILayer.set_output_type',
}
NOT_8 = {'NetworkDefinitionCreationFlag.STRONGLY_TYPED'}


def resolve(node: ast.expr) -> str | None:
    """Return the class, as a prefix of names, of what an expression holds."""
    if isinstance(node, ast.Name):
        return VARIABLES.get(node.id)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in RESULTS:
        return 'tensorrt.' + RESULTS[node.func.attr]
    if isinstance(node, ast.Attribute):
        if isinstance(node.value, ast.Name) and node.value.id == 'self':
            return VARIABLES.get(node.attr)
        if (owner := resolve(node.value)) is not None:
            return f'{owner}{node.attr}.'
    return None


def uses() -> dict[str, set[int]]:
    """Return each name that the engine uses and with how many arguments it is called."""
    found = {}
    trees = [ast.parse(path.read_text(encoding='utf-8')) for path in SOURCES.glob('*.py')]
    for node in chain.from_iterable(map(ast.walk, trees)):
        if isinstance(node, ast.Attribute) and (owner := resolve(node.value)):
            found.setdefault(owner + node.attr, set())
        if isinstance(node, ast.Call):
            called, arguments = node.func, node.args
            if isinstance(called, ast.Name) and called.id == 'call':  # call(cudart.function, arguments ...)
                called, *arguments = node.args
            if isinstance(called, ast.Attribute) and (owner := resolve(called.value)):
                found.setdefault(owner + called.attr, set()).add(len(arguments))
        if isinstance(node, ast.Constant) and str(node.value).startswith('cudaMemcpy'):
            found.setdefault(f'cuda.cudaMemcpyKind.{node.value}', set())
    return {name: counts for name, counts in found.items() if '__' not in name}


def used_names(library: str) -> list[str]:
    return sorted(name.partition('.')[2] for name in uses() if name.startswith(f'{library}.'))


def versions(library: str) -> list[str]:
    return list(json.loads(RECORD.read_text())[library]) if RECORD.is_file() else []


def arities(signature: str, is_method: bool) -> range:
    """Return with how many arguments a signature like ``f(self: A, b: B, c: C = <C.D: 0>) -> E`` can be called."""
    inside = re.sub(r'<[^>]*>|\[[^\]]*\]', '', signature.partition('(')[2])
    parameters = [part for part in inside.split(')')[0].split(',') if part.strip()][is_method:]
    return range(sum('=' not in part for part in parameters), len(parameters) + 1)


def test_the_record_has_every_name():
    assert len(used_names('tensorrt')) > 40
    assert len(used_names('cuda')) > 15
    record = json.loads(RECORD.read_text())
    for library in ('tensorrt', 'cuda'):
        for version, names in record[library].items():
            assert sorted(names) == used_names(library), f'{library} {version}: run test/record_tensorrt_names.py'


@pytest.mark.parametrize('version', versions('tensorrt'))
def test_tensorrt_has_every_name_that_is_used(version):
    names = json.loads(RECORD.read_text())['tensorrt'][version]
    absent = {name for name, signature in names.items() if signature is None}
    assert absent <= (NOT_8 if version.startswith('8') else ONLY_8)


@pytest.mark.parametrize('version', versions('cuda'))
def test_cuda_has_every_name_that_is_used(version):
    names = json.loads(RECORD.read_text())['cuda'][version]
    assert [name for name, signature in names.items() if signature is None] == []


@pytest.mark.parametrize('library', ['tensorrt', 'cuda'])
def test_every_function_takes_what_it_is_given(library):
    called = uses()
    for version, names in json.loads(RECORD.read_text())[library].items():
        checked = 0
        for name, signature in names.items():
            if signature:
                counts = called[f'{library}.{name}']
                allowed = arities(signature, 'self' in signature)
                checked += len(counts)
                assert counts <= set(allowed), f'{library} {version}: {signature}'
        assert checked > 10, version
