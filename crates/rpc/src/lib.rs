//! gRPC interface: generated code, TLS identities, channels between servers and error statuses.
//!
//! - [`v1`]: what travels; the contract is in the head comments of `proto/concilium/v1`.
//! - [`identity`], [`certificates`], [`inspection`]: who is who.
//! - [`tls`], [`reload`], [`accept`]: certificates in use, replaced while connections are open.
//! - [`signature`], [`receipt`]: what a server has said, checked by those to whom it matters.
//! - [`model_set`]: what a receipt names the models by that answered.
//! - [`status`]: the one table from errors to gRPC statuses and back.
//! - [`chunk`]: long byte strings as streams.
//! - [`connect`]: connections to and of servers; [`probe`]: what is wrong with one.
//! - [`lane`]: the link between the servers, over which the multi-party computation runs.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a panic is how a test fails"))]

pub mod accept;
pub mod certificates;
pub mod chunk;
pub mod connect;
pub mod identity;
pub mod inspection;
pub mod lane;
pub mod model_set;
pub mod probe;
pub mod receipt;
mod redacted;
pub mod reload;
pub mod signature;
pub mod socket;
pub mod status;
pub mod time;
pub mod tls;

/// Messages, clients and servers generated from `proto/concilium/v1`.
///
/// The units, ranges and status codes of each message are written in the `.proto` files.
#[allow(missing_docs, unreachable_pub, clippy::all, rustdoc::all, reason = "the code is generated")]
pub mod v1 {
    tonic::include_proto!("concilium.v1");
}

/// Encoded `google.protobuf.FileDescriptorSet` of the interface, for gRPC server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("concilium.v1");
