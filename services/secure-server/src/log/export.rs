//! Export of spans to a collector by OTLP over gRPC, for operators who ask for it.
//!
//! A thread of its own sends what has piled up once a second. What does not fit into its queue while
//! the collector is away is dropped: the server never waits for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use opentelemetry::KeyValue;
use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, TraceContextExt as _, TraceFlags, TraceId, TraceState, TracerProvider as _,
};
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider, SpanData, SpanExporter,
};
use tracing::Span;
use tracing::level_filters::LevelFilter;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::Layer;
use tracing_subscriber::registry::LookupSpan;

use super::filter::OWN_TARGETS;

/// How often spans are sent.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long one attempt to send may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long a server that stops waits until its last spans have left.
const LAST_PATIENCE: Duration = Duration::from_secs(2);
/// What the collector shows as the program.
const SERVICE_NAME: &str = "concilium-server";

/// The export of this process.
pub(super) struct Export {
    provider: SdkTracerProvider,
}

impl Export {
    /// Begins to export to `endpoint` as the server `instance`. Must run within a multi-thread tokio
    /// runtime.
    ///
    /// # Errors
    /// An endpoint that is no address.
    pub(super) fn start(endpoint: &str, instance: &str) -> anyhow::Result<Self> {
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .with_timeout(TIMEOUT)
            .build()
            .with_context(|| {
                format!("`observability.otlp_endpoint` = {endpoint:?}; write http://HOST:PORT")
            })?;
        let exporter = Reporting { exporter, endpoint: endpoint.to_owned(), failing: AtomicBool::new(false) };
        let config = BatchConfigBuilder::default().with_scheduled_delay(INTERVAL).build();
        let processor = BatchSpanProcessor::builder(exporter).with_batch_config(config).build();
        let resource = Resource::builder_empty()
            .with_service_name(SERVICE_NAME)
            .with_attribute(KeyValue::new("service.instance.id", instance.to_owned()))
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let provider =
            SdkTracerProvider::builder().with_span_processor(processor).with_resource(resource).build();
        Ok(Export { provider })
    }

    /// Hands this project's own spans and events over, down to the steps of a batch. What other
    /// libraries trace stays out, and so do single messages, of which there are too many.
    pub(super) fn layer<S>(&self) -> impl Layer<S> + Send + Sync + use<S>
    where
        S: tracing::Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer(SERVICE_NAME))
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_filter(Targets::new().with_target(OWN_TARGETS, LevelFilter::DEBUG))
    }

    /// Sends what is left. Blocks for some seconds at most.
    pub(super) fn finish(&self) {
        // A collector that is away has been reported.
        let _ = self.provider.shutdown_with_timeout(LAST_PATIENCE);
    }
}

/// Puts a span under the trace that is named by the run of its batch, so that the three servers' spans
/// of one batch meet in one trace. The run is 16 random bytes that all three know. Does nothing if
/// spans are not exported.
pub(crate) fn join_trace(span: &Span, run: &[u8; 16]) {
    let digest = blake3::hash(run);
    let mut parent = [0; 8];
    parent.copy_from_slice(&digest.as_bytes()[..8]);
    let parent = SpanContext::new(
        TraceId::from_bytes(*run),
        SpanId::from_bytes(parent),
        TraceFlags::SAMPLED,
        true,
        TraceState::NONE,
    );
    // Without an exporter, or with spans of this level off, there is nothing to set.
    let _ = span.set_parent(opentelemetry::Context::new().with_remote_span_context(parent));
}

/// Collectors group spans by name, where a log has one name for all calls, and one for all steps, with
/// a field that tells them apart.
fn rename(span: &mut SpanData) {
    let field = match &*span.name {
        "call" => "method",
        "step" => "step",
        _ => return,
    };
    if field == "method" {
        span.span_kind = SpanKind::Server;
    }
    let value = span.attributes.iter().find(|attribute| attribute.key.as_str() == field);
    if let Some(attribute) = value {
        span.name = attribute.value.as_str().into_owned().into();
    }
}

/// Passes spans on and says when that begins to fail and when it works again, once each.
#[derive(Debug)]
struct Reporting<E> {
    exporter: E,
    endpoint: String,
    failing: AtomicBool,
}

impl<E: SpanExporter> SpanExporter for Reporting<E> {
    async fn export(&self, mut batch: Vec<SpanData>) -> OTelSdkResult {
        batch.iter_mut().for_each(rename);
        let outcome = self.exporter.export(batch).await;
        let failed_before = self.failing.swap(outcome.is_err(), Ordering::Relaxed);
        match &outcome {
            Err(error) if !failed_before => tracing::warn!(
                endpoint = %self.endpoint, %error,
                "the collector does not take spans; they are dropped until it does"
            ),
            Ok(()) if failed_before => {
                tracing::info!(endpoint = %self.endpoint, "the collector takes spans again");
            }
            _ => {}
        }
        outcome
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
