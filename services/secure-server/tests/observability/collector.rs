//! A collector of traces, as small as one can be: it keeps what it is sent.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::runtime::Runtime;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, async_trait};

#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

#[async_trait]
impl TraceService for Kept {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().expect("nobody panics").push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// A running collector.
pub(crate) struct Collector {
    kept: Kept,
    address: SocketAddr,
    /// Its own, which ends with all connections.
    runtime: Option<Runtime>,
}

impl Collector {
    pub(crate) fn start() -> Collector {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a socket can be so");
        let address = listener.local_addr().expect("it is bound");
        let runtime = Runtime::new().expect("a runtime");
        let kept = Kept::default();
        let service = TraceServiceServer::new(kept.clone());
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("it is not blocking");
            let server = Server::builder().add_service(service);
            server.serve_with_incoming(TcpIncoming::from(listener)).await.expect("the collector serves");
        });
        Collector { kept, address, runtime: Some(runtime) }
    }

    /// The endpoint as it stands in a server's configuration.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Everything that has come so far.
    pub(crate) fn requests(&self) -> Vec<ExportTraceServiceRequest> {
        self.kept.0.lock().expect("nobody panics").clone()
    }

    /// Every span that has come so far, with the instance that sent it.
    pub(crate) fn spans(&self) -> Vec<(String, Span)> {
        let requests = self.requests();
        let resources = requests.into_iter().flat_map(|request| request.resource_spans);
        resources
            .flat_map(|resource| {
                let attributes = resource.resource.expect("a resource").attributes;
                let instance = text(&attributes, "service.instance.id").expect("an instance");
                let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
                spans.map(|span| (instance.clone(), span)).collect::<Vec<_>>()
            })
            .collect()
    }
}

impl Drop for Collector {
    /// Goes away, with all its connections.
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// The value of an attribute as text.
pub(crate) fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    let value = attributes.iter().find(|attribute| attribute.key == key)?.value.clone();
    match value {
        Some(AnyValue { value: Some(any_value::Value::StringValue(text)) }) => Some(text),
        Some(AnyValue { value: Some(any_value::Value::IntValue(number)) }) => Some(number.to_string()),
        _ => None,
    }
}
