#!/usr/bin/env python3
"""The ONNX standard's own tests of single operators, through `concilium-owner check`.

Installs the package `onnx` into target/onnx-backend (a virtual environment), takes every node test whose
operators are all in docs/operators.md, makes a classifier of it, and compares what three parties in one process
compute, and the network in double precision, with the expected output. Prints for each operator how many tests
passed, failed, and were refused as unsupported; ends with 1 if any failed.

A test becomes a classifier like this: the first floating-point input is the model's input, its first dimension
the batch; all others are constants, but for operators that combine values, whose inputs are cut out of one; the output, whose first dimension must still be the batch, is flattened and
multiplied with a fixed matrix, which gives ten logits. Tests that this does not fit are counted apart.

    crates/network/tests/onnx_backend/run.py [--program target/release/concilium-owner] [--operator Conv]
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import venv
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[4]
REQUIREMENTS = ["onnx==1.23.2", "numpy==2.4.6"]
CLASSES = 10
OUTCOMES = ("passed", "failed", "refused", "not applicable")
NUMBER_FORMATS = ("float32", "float64", "float16")
# Operators whose inputs are values of the same kind: all of them come from the model's input.
OF_VALUES = {"Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Concat"}


def installed() -> None:
    """Continues in an environment that has the packages."""
    home = ROOT / "target" / "onnx-backend"
    python = home / ("Scripts" if os.name == "nt" else "bin") / "python"
    if Path(sys.prefix) == home:
        return
    if not (home / "complete").exists():
        venv.create(home, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *REQUIREMENTS], check=True)
        (home / "complete").touch()
    os.execv(python, [str(python), __file__, *sys.argv[1:]])


def supported() -> set[tuple[str, str]]:
    """Domain and name of every operator in the documented table."""
    table = (ROOT / "docs" / "operators.md").read_text()
    return set(re.findall(r"^\| (ai\.onnx(?:\.ml)?) \| (\w+) \|", table, flags=re.M))


class NotApplicable(Exception):
    """A test that cannot be made into a classifier, with the reason."""


def classifier(case, inputs, expected):
    """The test's model with a head, its rows, and the logits that it must give."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    model = type(case.model)()
    model.CopyFrom(case.model)
    graph = model.graph
    given = {value.name: array for value, array in zip(graph.input, inputs)}
    arrays = [*given.values(), *expected]
    if any(not hasattr(array, "dtype") for array in arrays):
        raise NotApplicable("a sequence or map")
    numbers = [name for name, array in given.items() if array.dtype.name in NUMBER_FORMATS]
    if not numbers:
        raise NotApplicable("no input of real numbers")
    of_values = {node.op_type for node in graph.node} <= OF_VALUES
    if given[numbers[0]].ndim == 1 and (of_values or len(given) == 1):
        # A list of numbers is a batch of one number each; operators with axes are refused or fail visibly.
        for name in numbers:
            given[name] = given[name].reshape(-1, 1)
        for value in graph.input:
            if value.name in numbers:
                value.CopyFrom(helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, [None, 1]))
    shape = given[numbers[0]].shape
    output = expected[0]
    if output.dtype.name not in NUMBER_FORMATS:
        raise NotApplicable("no output of real numbers")
    if len(shape) < 2 or len(output.shape) < 1 or output.shape[0] != shape[0] or 0 in shape or output.size == 0:
        raise NotApplicable("the first dimension is no batch")
    joined = [name for name in numbers if given[name].shape[:1] == shape[:1] and given[name].ndim > 1]
    joined = joined if of_values else numbers[:1]
    for value in list(graph.input):
        if value.name not in joined:
            graph.initializer.append(numpy_helper.from_array(given[value.name], value.name))
        if value.name not in joined or len(joined) > 1:
            graph.input.remove(value)
    rows_array = given[joined[0]].astype(np.float32)
    if len(joined) > 1:
        # One input, of which every value is a slice in its own shape.
        rows_array = np.concatenate([given[name].reshape(shape[0], -1) for name in joined], axis=1).astype(np.float32)
        graph.input.append(helper.make_tensor_value_info("joined", TensorProto.FLOAT, [None, rows_array.shape[1]]))
        start, cut = 0, []
        for position, name in enumerate(joined):
            size = given[name].size // shape[0]
            numbers_of = {"start": [start], "end": [start + size], "axis": [1], "shape": [-1, *given[name].shape[1:]]}
            for what, values in numbers_of.items():
                array = np.array(values, dtype=np.int64)
                graph.initializer.append(numpy_helper.from_array(array, f"{what}_{position}"))
            inputs_of = ["joined", *(f"{what}_{position}" for what in ("start", "end", "axis"))]
            cut.append(helper.make_node("Slice", inputs_of, [f"slice_{position}"]))
            cut.append(helper.make_node("Reshape", [f"slice_{position}", f"shape_{position}"], [name]))
            start += size
        nodes = [*cut, *graph.node]
        del graph.node[:]
        graph.node.extend(nodes)
    name = graph.output[0].name
    features = output.size // shape[0]
    random = np.random.default_rng(7)
    head = random.uniform(-1, 1, (features, CLASSES)).astype(np.float32) / np.float32(np.sqrt(features))
    graph.initializer.append(numpy_helper.from_array(head, "head_weights"))
    # Several tests are models of one sample only; Reshape with 0 keeps the batch.
    target = numpy_helper.from_array(np.array([0, features], dtype=np.int64), "head_shape")
    graph.initializer.append(target)
    graph.node.append(helper.make_node("Reshape", [name, "head_shape"], ["head_rows"]))
    graph.node.append(helper.make_node("MatMul", ["head_rows", "head_weights"], ["logits"]))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, [None, CLASSES]))
    if not (np.isfinite(rows_array).all() and np.isfinite(output).all()):
        raise NotApplicable("infinite or no numbers")
    return model, rows_array, output.reshape(shape[0], features).astype(np.float64) @ head.astype(np.float64)


def run(program: Path, case, data_set) -> tuple[str, str]:
    """Outcome of one test, and its reason."""
    import numpy as np
    import onnx

    try:
        model, rows, expected = classifier(case, *data_set)
    except NotApplicable as reason:
        return "not applicable", str(reason)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("model.onnx", "rows.npy", "report.json")]
        onnx.save(model, files[0])
        np.save(files[1], rows)
        done = subprocess.run(
            [program, "check", files[0], "--inputs", files[1], "--json", files[2]],
            capture_output=True,
            text=True,
            timeout=300,
        )
        if not files[2].exists():
            return "failed", f"exit code {done.returncode}: {done.stderr.strip()}"
        report = json.loads(files[2].read_text())
    if done.returncode == 2 and not report["ok"]:
        return "refused", report["reason"]
    if done.returncode != 0 or not report["ok"]:
        return "failed", f"exit code {done.returncode}: {done.stderr.strip()}"
    scale = max(1.0, float(np.abs(expected).max()))
    for which, allowed in (("outputs_oracle", 1e-4 * scale), ("outputs_mpc", 1e-4 * scale + report["proven_error_bound"])):
        off = float(np.abs(np.array(report[which]) - expected).max())
        if off > allowed:
            return "failed", f"{which} is {off:.3g} off, {allowed:.3g} allowed"
    return "passed", f"{report['max_abs_error']:.2g} off in fixed point"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=Path, default=ROOT / "target" / "release" / "concilium-owner")
    parser.add_argument("--operator", help="only tests of this operator")
    parser.add_argument("--verbose", action="store_true", help="print every test with its reason")
    arguments = parser.parse_args()
    if not arguments.program.exists():
        parser.error(f"{arguments.program} does not exist; cargo build --release -p concilium-owner")
    installed()

    from onnx.backend.test.case.node import collect_testcases

    known = supported()
    counts: dict[str, Counter] = defaultdict(Counter)
    failures = []
    for case in sorted(collect_testcases(None), key=lambda case: case.name):
        if case.model is None or not case.data_sets:
            continue
        operators = {(node.domain or "ai.onnx", node.op_type) for node in case.model.graph.node}
        if not operators <= known or (arguments.operator and arguments.operator not in {name for _, name in operators}):
            continue
        outcome, reason = run(arguments.program.resolve(), case, case.data_sets[0])
        for _, operator in operators:
            counts[operator][outcome] += 1
        if outcome == "failed":
            failures.append(f"{case.name}: {reason}")
        if arguments.verbose:
            print(f"{outcome:15} {case.name}: {reason}", flush=True)
    width = max(map(len, counts), default=8)
    print(f"{'operator':{width}}  " + "  ".join(OUTCOMES))
    for operator in sorted(counts):
        cells = [f"{counts[operator][outcome]:{len(outcome)}}" for outcome in OUTCOMES]
        print(f"{operator:{width}}  " + "  ".join(cells))
    total = Counter()
    for one in counts.values():
        total.update(one)
    print(f"{'all':{width}}  " + "  ".join(f"{total[outcome]:{len(outcome)}}" for outcome in OUTCOMES))
    untested = sorted(name for _, name in known if name not in counts)
    print("operators without a test of their own:", ", ".join(untested))
    for failure in failures:
        print("FAILED", failure)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
