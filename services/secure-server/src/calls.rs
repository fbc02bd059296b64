//! What every call on the port for clients, owners and operators has in common: a span and a count.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use tonic::Code;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tower::{Layer, Service};
use tracing::Instrument as _;
use tracing::field::Empty;

use crate::metrics;

/// The calls that are counted by name. Any path can be asked for, so there must be a list.
const METHODS: [&str; 12] = [
    "Predict",
    "ListTasks",
    "Upload",
    "Activate",
    "Withdraw",
    "List",
    "GetBudget",
    "ExportLog",
    "GetStatus",
    "SetLogFilter",
    "ResumeTask",
    "FindModelSets",
];

/// How other calls are counted: health, reflection, and what does not exist.
const OTHER: &str = "other";

/// Puts [`Calls`] around a server's services.
#[derive(Clone, Copy, Debug, Default)]
pub struct CallLayer;

/// Opens a span for every call and counts it when it ends. The span's `caller` is filled in once the
/// certificate was read, `task` and `request` once the header of a request has come.
#[derive(Clone, Debug)]
pub struct Calls<S> {
    inner: S,
}

impl<S> Layer<S> for CallLayer {
    type Service = Calls<S>;

    fn layer(&self, inner: S) -> Calls<S> {
        Calls { inner }
    }
}

impl<S, B, R> Service<Request<B>> for Calls<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let method = method(request.uri().path());
        let span = tracing::info_span!("call", method, caller = Empty, task = Empty, request = Empty);
        let began = Instant::now();
        let answer = self.inner.call(request);
        let counted = async move {
            let mut ending = Ending { method, code: "CANCELLED", began };
            let answer = answer.await;
            ending.code = answer.as_ref().map_or("INTERNAL", |answer| code(answer.headers()));
            answer
        };
        Box::pin(counted.instrument(span))
    }
}

/// Counts the call, also one whose caller hung up: its future is dropped without an answer.
struct Ending {
    method: &'static str,
    code: &'static str,
    began: Instant,
}

impl Drop for Ending {
    fn drop(&mut self) {
        metrics::count_call(self.method, self.code);
        let took_us = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        tracing::debug!(code = self.code, took_us, "the call has ended");
    }
}

fn method(path: &str) -> &'static str {
    let called = path.strip_prefix("/concilium.v1.").and_then(|path| path.split_once('/'));
    let known = called.and_then(|(_service, name)| METHODS.into_iter().find(|method| *method == name));
    known.unwrap_or(OTHER)
}

/// The status code of an answer. A refusal comes with it in its head; an answer that has a body is
/// complete before it leaves, so nothing can fail later on this side. Only an exported log is read while it is
/// sent; one that breaks off counts as begun well, and lacks its statement.
fn code(headers: &HeaderMap) -> &'static str {
    let Some(code) = headers.get("grpc-status") else { return "OK" };
    match Code::from_bytes(code.as_bytes()) {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message as _;
    use prost_types::FileDescriptorSet;

    use super::*;

    #[test]
    fn every_method_of_the_interface_is_counted_by_name() {
        let files = FileDescriptorSet::decode(concilium_rpc::FILE_DESCRIPTOR_SET).expect("a descriptor set");
        let services = files.file.iter().filter(|file| file.package() == "concilium.v1");
        let mut served = BTreeSet::new();
        for service in services.flat_map(|file| &file.service).filter(|service| service.name() != "Peer") {
            for called in &service.method {
                let path = format!("/concilium.v1.{}/{}", service.name(), called.name());
                assert_eq!(method(&path), called.name());
                served.insert(called.name());
            }
        }
        assert_eq!(served, BTreeSet::from(METHODS));
        for path in ["/grpc.health.v1.Health/Check", "/concilium.v1.Prediction/Guess", "/", "", "Predict"] {
            assert_eq!(method(path), OTHER, "{path}");
        }
    }
}
