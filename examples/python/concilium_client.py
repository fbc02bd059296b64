#!/usr/bin/env python3
"""A client of Concilium in Python, made from the .proto files and a stock grpcio.

Commands:
  tasks     what the servers serve, what it costs and what is left
  predict   share rows among the three servers and put the noisy answer together
  services  what each server says of itself: reflection and health
"""

import argparse
import hashlib
import json
import os
import pathlib
import secrets
import sys

import numpy as np

import interface
import prices
import sharing
from servers import Failure, Servers

prediction, stubs = interface.load()
CHUNK_BYTES = 262144
ENCODINGS = {
    prediction.RELEASE_LABEL: prediction.RESULT_ENCODING_BOOLEAN_U16,
    prediction.RELEASE_HISTOGRAM: prediction.RESULT_ENCODING_ARITHMETIC_U64,
    prediction.RELEASE_CONFIDENT_LABEL: prediction.RESULT_ENCODING_CONFIDENT_U16,
    prediction.RELEASE_MEAN_PROBABILITY: prediction.RESULT_ENCODING_ARITHMETIC_U64,
}


def without(message, *fields):
    """A copy without the fields in which the three servers may differ."""
    copy = type(message)()
    copy.CopyFrom(message)
    for field in fields:
        copy.ClearField(field)
    return copy


def tasks(servers):
    """The tasks by name. One server alone is not believed: all three must announce the same."""
    request = prediction.ListTasksRequest()

    def begin(_, channel):
        call = stubs.PredictionStub(channel).ListTasks.future(request, timeout=servers.timeout)
        return Single(call)

    lists = [answer[0].tasks for answer in servers.ask_until_answered(begin)]
    varying = ("caller_spent_nano_rho", "owners_ready", "models_ready")
    announced = [{task.name: without(task, *varying) for task in tasks} for tasks in lists]
    for server in (1, 2):
        for name in announced[0].keys() | announced[server].keys():
            if announced[0].get(name) != announced[server].get(name):
                raise Failure(Failure.REFUSED, f"task `{name}` differs between servers 0 and {server}")
    for task in lists[0]:
        # The price is that of the announced noise: a server that asks for another one has another program.
        if sum(prices.row_prices(task)) != task.cost_nano_rho_per_row:
            raise Failure(Failure.REFUSED, f"task `{task.name}` has another price than its noise")
    return {task.name: task for task in lists[0]}


class Single:
    """A call with one answer, in the form of a stream."""

    def __init__(self, call):
        self.call = call

    def __iter__(self):
        yield self.call.result()

    def cancel(self):
        self.call.cancel()


def messages(header, data):
    """The stream of a request: the header, then the data components in chunks."""
    yield prediction.PredictRequest(header=header)
    for part in data:
        for start in range(0, len(part), CHUNK_BYTES):
            yield prediction.PredictRequest(chunk=part[start : start + CHUNK_BYTES])


def component(part):
    """One component as the header announces it."""
    if "seed" in part:
        return prediction.Component(seed=part["seed"])
    return prediction.Component(data_bytes=len(part["data"]))


def predict(servers, task, rows, key=None):
    """Asks for one request of rows [rows, features]. Gives the receipt and the opened values."""
    values = sharing.encode(task, rows)
    request_id, *seeds = sharing.request_secrets(task, servers.caller, len(rows), values, key)
    # Servers that know but one ring do not name it.
    ring_bits = task.ring_bits if task.HasField("ring_bits") else 64
    parts = sharing.share(values, *seeds, ring_bits)

    def begin(server, channel):
        header = prediction.PredictHeader(
            task=task.name,
            request_id=request_id,
            rows=len(rows),
            policy_digest=task.policy_digest,
            own=component(parts[server][0]),
            next=component(parts[server][1]),
        )
        data = [part["data"] for part in parts[server] if "data" in part]
        return stubs.PredictionStub(channel).Predict(messages(header, data), timeout=servers.timeout)

    # The same id and the same parts in every attempt: however many there are, one is charged.
    replies = servers.ask_until_answered(begin)
    # The signed bytes are the receipt. TLS has told who sends them, so the signatures matter only to those
    # to whom the receipts are shown later.
    receipts = [prediction.Receipt.FromString(reply[0].header.receipt) for reply in replies]
    varying = (
        "caller_spent_nano_rho",
        "caller_spent_epsilon",
        "caller_budgets",
        "replayed",
        "statistics",
        "result_commitment",
    )
    first = receipts[0]
    if any(without(receipt, *varying) != without(first, *varying) for receipt in receipts[1:]):
        raise Failure(Failure.REFUSED, "the receipts differ; a server is faulty, the answer is discarded")
    confident = task.release == prediction.RELEASE_CONFIDENT_LABEL
    consenting = first.consenting_rows
    # Of a confident label the test is paid for every row, and the answer where there is one.
    test, answer = prices.row_prices(task)
    answered = consenting if confident else len(rows)
    price = test * len(rows) + answer * answered
    if answered > len(rows) or first.HasField("consenting_rows") != confident:
        raise Failure(Failure.REFUSED, "the receipt is about another request; the answer is discarded")
    asked = (task.name, task.epoch, request_id, len(rows), task.release, task.classes, task.mechanism, price)
    got = (first.task, first.epoch, first.request_id, first.rows, first.release, first.classes, first.mechanism)
    if (*got, first.charged_nano_rho) != asked or first.encoding != ENCODINGS[task.release]:
        raise Failure(Failure.REFUSED, "the receipt is about another request; the answer is discarded")
    try:
        components = [collect(reply[1:]) for reply in replies]
        for reply, receipt, parts in zip(replies, receipts, components):
            committed = hashlib.sha256(b"concilium v1 result" + reply[0].header.result_key + b"".join(parts))
            if committed.digest() != receipt.result_commitment:
                raise ValueError("a receipt is that of another result")
        labels = task.release in (prediction.RELEASE_LABEL, prediction.RELEASE_CONFIDENT_LABEL)
        released = sharing.open_result(components, len(rows), task.classes, labels)
        if labels and (released >= 0).sum() != (consenting if confident else len(rows)):
            raise ValueError("the answer has another number of labels than the receipts say")
    except ValueError as error:
        raise Failure(Failure.REFUSED, f"{error}; a server is faulty, the answer is discarded") from error
    replayed = any(receipt.replayed for receipt in receipts)
    spent = max(receipt.caller_spent_nano_rho for receipt in receipts)
    return {"receipt": first, "released": released, "replayed": replayed, "spent": spent}


def collect(responses):
    """Joins one server's chunks to its own and its next component."""
    slots = (prediction.COMPONENT_SLOT_OWN, prediction.COMPONENT_SLOT_NEXT)
    chunks = [response.chunk for response in responses]
    return tuple(b"".join(chunk.bytes for chunk in chunks if chunk.component_slot == slot) for slot in slots)


def read_rows(path, wanted):
    """The rows of a .npy or .csv file, as far as A..B selects them."""
    try:
        rows = np.load(path) if path.endswith(".npy") else np.loadtxt(path, delimiter=",", ndmin=2)
        first, last = (int(end) if end else None for end in wanted.split(".."))
        rows = rows.reshape(len(rows), -1).astype(float)[first:last]
        if not len(rows) or (last is not None and len(rows) != last - (first or 0)):
            raise ValueError(f"--rows {wanted} reaches beyond its rows")
        return rows
    except (OSError, ValueError, TypeError) as error:
        raise Failure(Failure.INPUT, f"`{path}`: {error}") from error


def read_key(path):
    """The key of repeats in a file, which is made, for its owner's eyes only, if there is none."""
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        pass
    except OSError as error:
        raise Failure(Failure.LOCAL, f"cannot write a new repeat key: {error}") from error
    try:
        key = bytes.fromhex(pathlib.Path(path).read_text())
    except (OSError, ValueError):
        key = b""
    if len(key) != 32:
        raise Failure(Failure.INPUT, f"`{path}` holds no repeat key, which is 64 hexadecimal digits")
    return key


def run_predict(servers, arguments):
    rows = read_rows(arguments.input, arguments.rows)
    key = read_key(arguments.repeat_key) if arguments.repeat_key else None
    served = tasks(servers)
    if arguments.task not in served:
        raise Failure(Failure.INPUT, f"there is no task `{arguments.task}`; there are {', '.join(served)}")
    task = served[arguments.task]
    try:
        sharing.encode(task, rows)  # a mistake in the last row is found before the first is paid for
    except ValueError as error:
        raise Failure(Failure.INPUT, str(error)) from error
    batch = min(arguments.batch or task.max_rows_per_request, task.max_rows_per_request)
    answers = [
        predict(servers, task, rows[start : start + batch], key) for start in range(0, len(rows), batch)
    ]
    released = np.concatenate([answer["released"] for answer in answers])
    if task.release == prediction.RELEASE_MEAN_PROBABILITY:
        # Sums over the models, in units of 2^-16; noise can push a mean out of 0 to 1.
        models = [answer["receipt"].models for answer in answers for _ in answer["released"]]
        released = released / (2**16 * np.array(models)[:, np.newaxis])
    counted = task.release in (prediction.RELEASE_HISTOGRAM, prediction.RELEASE_MEAN_PROBABILITY)
    labels = released.argmax(axis=1) if counted else released
    for row, label in enumerate(labels):
        name = task.class_names[label] if task.class_names else str(label)
        name = "no consensus" if label < 0 else name
        print(name if labels is released else f"{name}  {' '.join(map(str, released[row]))}")
    report = {
        "labels": [None if label < 0 else int(label) for label in labels],
        "spent_nano_rho": answers[-1]["spent"],
        "requests": [
            {
                "request_id": answer["receipt"].request_id.hex(),
                "charged_nano_rho": answer["receipt"].charged_nano_rho,
                "models": answer["receipt"].models,
                "replayed": answer["replayed"],
            }
            for answer in answers
        ],
    }
    if task.release == prediction.RELEASE_MEAN_PROBABILITY:
        report["mean_probabilities"] = released.tolist()
    elif labels is not released:
        report["histograms"] = released.tolist()
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(report, indent=2) + "\n")
    repeated = sum(answer["replayed"] for answer in answers)
    print(
        f"charged {sum(answer['receipt'].charged_nano_rho for answer in answers) / 1e9} rho, spent {report['spent_nano_rho'] / 1e9}; "
        f"{repeated} of {len(answers)} requests were charged before, not again",
        file=sys.stderr,
    )


def run_tasks(servers, _):
    for task in tasks(servers).values():
        release = prediction.Release.Name(task.release).removeprefix("RELEASE_").lower()
        cap = task.caller_cap_nano_rho if task.HasField("caller_cap_nano_rho") else task.task_cap_nano_rho
        print(
            f"{task.name}: epoch {task.epoch}, input {list(task.input_shape)}, {task.classes} classes, "
            f"releases {release}, {task.models_ready} models, {task.cost_nano_rho_per_row / 1e9} rho a row, "
            f"spent {task.caller_spent_nano_rho / 1e9} of {cap / 1e9}"
        )


def run_services(servers, _):
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    def begin(_, channel):
        request = health_pb2.HealthCheckRequest(service="concilium.v1.Prediction")
        return Single(health_pb2_grpc.HealthStub(channel).Check.future(request, timeout=servers.timeout))

    health = [answer[0] for answer in servers.ask_until_answered(begin)]
    for server, channel in enumerate(servers.channels):
        status = health_pb2.HealthCheckResponse.ServingStatus.Name(health[server].status)
        found = ProtoReflectionDescriptorDatabase(channel).get_services()
        print(f"server {server}: {status}; {', '.join(sorted(found))}")


def positive(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="client.toml", metavar="FILE", help="as concilium-client takes it")
    commands = parser.add_subparsers(required=True)
    commands.add_parser("tasks").set_defaults(run=run_tasks)
    commands.add_parser("services").set_defaults(run=run_services)
    command = commands.add_parser("predict")
    command.set_defaults(run=run_predict)
    command.add_argument("--task", required=True)
    command.add_argument("--input", required=True, metavar="FILE", help=".npy or .csv; the first axis counts rows")
    command.add_argument("--rows", default="..", metavar="A..B", help="only these rows, the last one not included")
    command.add_argument("--batch", type=positive, metavar="N", help="most rows of one request")
    command.add_argument("--repeat-key", metavar="FILE", help="repeat the same requests after a crash")
    command.add_argument("--json", metavar="FILE", help="write the answers to this file")
    arguments = parser.parse_args()
    try:
        arguments.run(Servers(arguments.config), arguments)
    except Failure as failure:
        print(f"error: {failure}", file=sys.stderr)
        return failure.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
