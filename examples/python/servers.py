"""The three servers: mutual TLS, calls to all three at once, and what their errors mean."""

import pathlib
import time
import tomllib
from concurrent import futures

import interface  # first: it says what grpc prints, which is read when grpc is imported

import grpc
from cryptography import x509
from google.rpc import error_details_pb2, status_pb2

# Reasons after which the same call, for Predict under the same id, may be repeated. All other reasons
# of a server are for good; the table is in prediction.proto.
RETRYABLE = {"IN_PROGRESS", "BUDGET_PACED", "PEER_UNAVAILABLE", "LEDGER_UNAVAILABLE", "OVERLOADED"}

# A status without a reason is not the server's: the transport has lost the call.
LOST = {
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNKNOWN,
}

# How long the other servers are waited for when one has failed, in seconds.
GRACE = 0.5

# The longest time that a call is put off because a server asks for it, in seconds.
LONGEST_WAIT = 60.0


class Failure(Exception):
    """Ends the program with one line and an exit code, those of concilium-client."""

    LOCAL, INPUT, REFUSED, UNAVAILABLE = 1, 2, 3, 4

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


class ServerError(Failure):
    """One server's error, with its reason and whether the call may be repeated."""

    def __init__(self, server, address, error):
        self.reason, self.wait, text = "", 0.0, error.details() or "no message"
        status = status_pb2.Status()
        for name, value in error.trailing_metadata() or ():
            if name == "grpc-status-details-bin":
                status.ParseFromString(value)
        for detail in status.details:
            information, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
            if detail.Unpack(information) and information.domain == "concilium":
                self.reason = information.reason
            if detail.Unpack(retry):
                self.wait = retry.retry_delay.ToTimedelta().total_seconds()
        # Nothing but the text tells a failed handshake from a server that is down.
        tls = not self.reason and any(word in text for word in ("handshake", "CERTIFICATE", "TSI_"))
        lost = not self.reason and not tls and error.code() in LOST
        self.retryable = self.reason in RETRYABLE or lost
        name = self.reason or ("TLS" if tls else error.code().name)
        if tls:
            remedy = "check that `ca` is the authority of the servers and that your certificate is from it"
        elif lost:
            # The alert with which a server refuses a certificate may be lost with the connection.
            remedy = "may be repeated; check that the server runs and accepts your certificate"
        else:
            remedy = "may be repeated" if self.retryable else "not to be repeated"
        code = Failure.UNAVAILABLE if self.retryable else Failure.REFUSED
        if error.code() == grpc.StatusCode.INVALID_ARGUMENT:
            code = Failure.INPUT
        super().__init__(code, f"server {server} at {address}: {name}: {' '.join(text.split())} ({remedy})")


class Servers:
    """Channels to the three servers with the caller's certificate, as client.toml says."""

    def __init__(self, path):
        path = pathlib.Path(path)
        try:
            config = tomllib.loads(path.read_text())
            files = {name: path.parent / config["tls"][name] for name in ("ca", "certificate", "key")}
            self.addresses = list(config["servers"])
            self.timeout = config.get("request_timeout_ms", 120_000) / 1000
            pem = {name: file.read_bytes() for name, file in files.items()}
            self.caller = identity(pem["certificate"])
        except (OSError, ValueError, x509.ExtensionNotFound) as error:
            raise Failure(Failure.INPUT, f"`{path}`: {error}") from error
        except KeyError as error:
            raise Failure(Failure.INPUT, f"`{path}`: the key {error} is missing") from error
        if len(self.addresses) != 3:
            raise Failure(Failure.INPUT, f"`{path}`: `servers` must name three addresses")
        credentials = grpc.ssl_channel_credentials(pem["ca"], pem["key"], pem["certificate"])
        self.channels = [
            # Only server i's certificate has this name: the three cannot be mixed up.
            grpc.secure_channel(
                address, credentials, [("grpc.ssl_target_name_override", f"server-{server}.concilium")]
            )
            for server, address in enumerate(self.addresses)
        ]

    def ask_all(self, begin):
        """The messages of all three answers; begin(server, channel) starts a call with a stream of them.

        Each server waits for the two others, so the failure of one ends the waiting for all.
        """
        calls = [begin(server, channel) for server, channel in enumerate(self.channels)]
        with futures.ThreadPoolExecutor(3) as pool:
            answers = [pool.submit(list, call) for call in calls]
            futures.wait(answers, return_when=futures.FIRST_EXCEPTION)
            _, given_up = futures.wait(answers, timeout=GRACE)
            for call in calls:
                call.cancel()
        failed = [server for server in range(3) if answers[server].exception() is not None]
        errors = [
            ServerError(server, self.addresses[server], answers[server].exception())
            for server in failed
            if answers[server] not in given_up
        ]
        if errors:
            # A refusal for good says why; the others only say that they wait. "No answer" comes before
            # "another server does not answer".
            raise min(errors, key=lambda error: (error.retryable, error.reason != ""))
        return [answer.result() for answer in answers]

    def ask_until_answered(self, begin, attempts=6):
        """As ask_all, repeated while the servers allow it."""
        for attempt in range(1, attempts + 1):
            try:
                return self.ask_all(begin)
            except ServerError as error:
                # A window of the budget may open only in hours: that is for people to wait for.
                if not error.retryable or error.wait > LONGEST_WAIT or attempt == attempts:
                    raise
                time.sleep(error.wait + 0.1 * 2**attempt)


def identity(certificate):
    """The URI concilium://<role>/<name> of a certificate."""
    extension = x509.load_pem_x509_certificate(certificate).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    uris = extension.value.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise ValueError("the certificate names no identity, or more than one; issue a new one")
    return uris[0]
