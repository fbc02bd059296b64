#!/usr/bin/env python3
"""Train the digit classifiers of the demonstration and export them as ONNX.

The UCI optical digits (1797 images of 8 x 8, bundled with scikit-learn) are divided into a test part and one
small training part per owner. No image is in two parts. Each owner trains a 64-32-10 ReLU network on its own
part alone, seeing nothing of the others; the network is written as `owner_NN.onnx`, and the test part as
`test_inputs.npy` and `test_labels.npy`.

    python train.py                      # writes the files beside this script
    python train.py --output DIR         # writes them elsewhere
    python train.py --compare            # prints the table of README.md, writes nothing

Every random choice follows from `--seed`; one processor thread is used, so that the order of floating-point
additions does not change. The versions in `requirements.txt` reproduce the files on the same processor type.
"""

import argparse
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

CLASSES = 10
FEATURES = 64
HIDDEN = 32
PIXEL_MAXIMUM = 16.0
TEST_ROWS = 397

# Chosen on the training parts only (an owner's network judged on the other owners' rows), never on the test part.
STEPS = 300
LEARNING_RATE = 5e-3
WEIGHT_DECAY = 1e-2

OPSET = 17
# 2410 float32 parameters are 9640 bytes; the rest is the graph itself.
FILE_BYTES_MAXIMUM = 10_500
# Largest difference of logits allowed between PyTorch and the exported file under ONNX Runtime.
EXPORT_TOLERANCE = 1e-4

# Each of the three servers adds an independent share of variance sigma^2 / 2, so that any two of them reach
# variance sigma^2; all three together give 1.5 sigma^2.
SERVERS = 3
SHARE_VARIANCE = 0.5
NOISE_DRAWS = 200


@dataclass
class Parts:
    """The division of the data: inputs are float32 [rows, 64] in [0, 1], labels int64 [rows]."""

    owners: list[tuple[np.ndarray, np.ndarray]]
    test_inputs: np.ndarray
    test_labels: np.ndarray


def divide(owners: int, seed: int) -> Parts:
    """Set a stratified test part aside and deal the other rows to `owners` disjoint parts.

    The rows are shuffled within their class and then dealt like cards, class after class, so that the parts
    differ by at most one row in size and by at most one row of each class.
    """
    digits = load_digits()
    inputs = (digits.data / PIXEL_MAXIMUM).astype(np.float32)
    labels = digits.target.astype(np.int64)
    training, test = train_test_split(np.arange(len(labels)), test_size=TEST_ROWS, stratify=labels, random_state=seed)
    generator = np.random.default_rng(seed)
    deck = np.concatenate([generator.permutation(training[labels[training] == digit]) for digit in range(CLASSES)])
    hands = [deck[owner::owners] for owner in range(owners)]

    dealt = np.concatenate([*hands, test])
    if len(np.unique(dealt)) != len(labels) or len(dealt) != len(labels):
        raise AssertionError("the parts overlap or leave rows out")
    return Parts([(inputs[hand], labels[hand]) for hand in hands], inputs[test], labels[test])


def build() -> torch.nn.Sequential:
    """An untrained network, [batch, 64] to [batch, 10] logits."""
    return torch.nn.Sequential(
        torch.nn.Linear(FEATURES, HIDDEN),
        torch.nn.ReLU(),
        torch.nn.Linear(HIDDEN, CLASSES),
    )


def train(inputs: np.ndarray, labels: np.ndarray, seed: int) -> torch.nn.Sequential:
    """Train one owner's network on its own rows by Adam on the whole part, and return it in evaluation mode."""
    torch.manual_seed(seed)
    network = build()
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    rows, targets = torch.from_numpy(inputs), torch.from_numpy(labels)
    for _ in range(STEPS):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(network(rows), targets).backward()
        optimiser.step()
    return network.eval()


def logits(network: torch.nn.Module, inputs: np.ndarray) -> np.ndarray:
    """The network's outputs, float32 [rows, 10]."""
    with torch.no_grad():
        return network(torch.from_numpy(inputs)).numpy()


def train_all(parts: Parts, seed: int) -> list[torch.nn.Sequential]:
    """One network per owner; each owner's seed differs, as it would among strangers."""
    return [train(inputs, labels, seed * 1000 + owner) for owner, (inputs, labels) in enumerate(parts.owners)]


def export(network: torch.nn.Module, path: Path, check_inputs: np.ndarray) -> None:
    """Write `network` as ONNX and check that ONNX Runtime computes from the file what PyTorch computes."""
    with warnings.catch_warnings():
        # The TorchScript exporter is announced as deprecated; it is used because its graphs are plain Gemm/Relu.
        warnings.simplefilter("ignore", category=DeprecationWarning)
        torch.onnx.export(
            network,
            (torch.zeros(1, FEATURES),),
            str(path),
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
            opset_version=OPSET,
            dynamo=False,
        )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (exported,) = session.run(["logits"], {"input": check_inputs})
    difference = float(np.abs(exported - logits(network, check_inputs)).max())
    if difference > EXPORT_TOLERANCE:
        raise RuntimeError(f"{path.name}: exported logits differ from PyTorch by {difference}")
    size = path.stat().st_size
    if size > FILE_BYTES_MAXIMUM:
        raise RuntimeError(f"{path.name}: {size} bytes, more than {FILE_BYTES_MAXIMUM}")


def count_votes(networks: list[torch.nn.Sequential], inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each owner's votes [owners, rows], and the number of votes for each class [rows, 10]."""
    votes = np.stack([logits(network, inputs).argmax(axis=1) for network in networks])
    counts = np.stack([(votes == digit).sum(axis=0) for digit in range(CLASSES)], axis=1)
    return votes, counts


def discrete_gaussian(variance: float, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """Samples of the discrete Gaussian of parameter `variance`, by its probabilities out to 12 deviations.

    For simulation only: what this leaves out (tails, floating point) is far below what 10^6 draws can show, but
    a privacy guarantee needs the exact samplers of the servers.
    """
    reach = int(np.ceil(12 * np.sqrt(variance)))
    support = np.arange(-reach, reach + 1)
    weight = np.exp(-(support**2) / (2 * variance))
    return generator.choice(support, size=shape, p=weight / weight.sum())


def noisy_accuracy(counts: np.ndarray, labels: np.ndarray, sigma: float, generator: np.random.Generator) -> float:
    """Share of right labels when all three servers' noise is added to the counts; mean over `NOISE_DRAWS`."""
    shape = (NOISE_DRAWS, *counts.shape)
    noise = sum(discrete_gaussian(SHARE_VARIANCE * sigma**2, shape, generator) for _ in range(SERVERS))
    return float(((counts + noise).argmax(axis=2) == labels).mean())


def compare(numbers: list[int], sigmas: list[float], seed: int) -> None:
    """Print, as a Markdown table, the accuracies on the test part for several numbers of owners."""
    heads = ["owners", "rows each", "single mean (min..max)", "majority", *(f"sigma {sigma:g}" for sigma in sigmas)]
    print("| " + " | ".join(heads) + " |")
    print("|---" * len(heads) + "|")
    for number in numbers:
        parts = divide(number, seed)
        votes, counts = count_votes(train_all(parts, seed), parts.test_inputs)
        single = (votes == parts.test_labels).mean(axis=1) * 100
        majority = (counts.argmax(axis=1) == parts.test_labels).mean() * 100
        generator = np.random.default_rng(seed)
        noisy = [noisy_accuracy(counts, parts.test_labels, sigma, generator) * 100 for sigma in sigmas]
        sizes = {len(labels) for _, labels in parts.owners}
        cells = [
            str(number),
            "-".join(str(size) for size in sorted(sizes)),
            f"{single.mean():.1f} ({single.min():.1f}..{single.max():.1f})",
            f"{majority:.1f}",
            *(f"{value:.1f}" for value in noisy),
        ]
        print("| " + " | ".join(cells) + " |")


def write(owners: int, output: Path, seed: int) -> None:
    """Train `owners` networks and write them and the test part to the folder `output`."""
    output.mkdir(parents=True, exist_ok=True)
    parts = divide(owners, seed)
    networks = train_all(parts, seed)
    for owner, network in enumerate(networks):
        export(network, output / f"owner_{owner:02}.onnx", parts.test_inputs)
    np.save(output / "test_inputs.npy", parts.test_inputs)
    np.save(output / "test_labels.npy", parts.test_labels)
    votes, counts = count_votes(networks, parts.test_inputs)
    print(
        f"{owners} owners, single accuracy {(votes == parts.test_labels).mean() * 100:.1f} %, "
        f"majority {(counts.argmax(axis=1) == parts.test_labels).mean() * 100:.1f} % "
        f"of {len(parts.test_labels)} test rows"
    )


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--owners", type=int, default=50, help="number of owners (default 50)")
    parser.add_argument("--seed", type=int, default=0, help="seed of every random choice (default 0)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder to write to")
    parser.add_argument("--compare", action="store_true", help="print the accuracy table and write nothing")
    arguments = parser.parse_args()
    if not 1 <= arguments.owners <= 100:
        parser.error("--owners must be from 1 to 100: a part needs rows of most digits")

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    if arguments.compare:
        compare([10, 25, 50], [2, 3, 5, 8], arguments.seed)
    else:
        write(arguments.owners, arguments.output, arguments.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
