"""The Python code of the interface, generated from the .proto files when it is first needed."""

import os
import pathlib
import shutil
import sys
import tempfile

# Read when grpc is imported, so whoever imports it imports this module first. What goes wrong is told
# once, by the error.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

HERE = pathlib.Path(__file__).resolve().parent
PROTO = HERE.parent.parent / "proto"
FILES = ("concilium/v1/prediction.proto", "concilium/v1/signature.proto")


def load(proto=PROTO, generated=HERE / "generated"):
    """Gives the modules of the messages and of the stubs, generating both if the .proto is newer."""
    target = generated / "concilium/v1/prediction_pb2_grpc.py"
    newest = max((proto / file).stat().st_mtime for file in FILES)
    if not target.exists() or target.stat().st_mtime < newest:
        generate(proto, generated)
    sys.path.insert(0, str(generated))
    from concilium.v1 import prediction_pb2, prediction_pb2_grpc

    return prediction_pb2, prediction_pb2_grpc


def generate(proto, generated):
    """Runs protoc. The files appear all at once, so that two programs may do this at the same time."""
    from grpc_tools import protoc

    generated.parent.mkdir(parents=True, exist_ok=True)
    fresh = pathlib.Path(tempfile.mkdtemp(prefix="generated-", dir=generated.parent))
    options = [f"--proto_path={proto}", f"--python_out={fresh}", f"--grpc_python_out={fresh}"]
    try:
        if protoc.main(["protoc", *options, *FILES]) != 0:
            raise SystemExit(f"protoc cannot read the files in {proto}")
        shutil.rmtree(generated, ignore_errors=True)
        fresh.rename(generated)
    except OSError:
        # Another program was faster; its files are as good.
        if not (generated / "concilium/v1/prediction_pb2_grpc.py").exists():
            raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


if __name__ == "__main__":
    generate(PROTO, HERE / "generated")
