//! Compiles `proto/concilium/v1` with a protobuf compiler in Rust, so that no `protoc` is needed.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

/// Files of the interface, relative to the folder `proto` of the workspace.
const FILES: [&str; 6] = [
    "concilium/v1/budget.proto",
    "concilium/v1/model_store.proto",
    "concilium/v1/operations.proto",
    "concilium/v1/peer.proto",
    "concilium/v1/prediction.proto",
    "concilium/v1/signature.proto",
];

/// Messages and choices with a field that holds a secret. Their `Debug` is written by hand in
/// `src/redacted.rs` and shows lengths only.
const SECRET: [&str; 10] = [
    ".concilium.v1.Component",
    ".concilium.v1.Component.kind",
    ".concilium.v1.Hello",
    ".concilium.v1.PredictRequest",
    ".concilium.v1.PredictRequest.message",
    ".concilium.v1.ProtocolMessage",
    ".concilium.v1.ResultChunk",
    ".concilium.v1.SignedReceipt",
    ".concilium.v1.UploadRequest",
    ".concilium.v1.UploadRequest.message",
];

fn main() -> Result<(), Box<dyn Error>> {
    let proto = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    for file in FILES {
        println!("cargo:rerun-if-changed={}", proto.join(file).display());
    }
    let descriptors = protox::compile(FILES.map(|file| proto.join(file)), [&proto])?;
    let descriptor_file = PathBuf::from(env::var("OUT_DIR")?).join("concilium.v1.bin");
    fs::write(descriptor_file, descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_transport(false)
        .bytes(".")
        .btree_map(".")
        .skip_debug(SECRET)
        // By far the largest frame, and a rare one.
        .boxed(".concilium.v1.LaneFrame.frame.self_test")
        .compile_fds(descriptors)?;
    Ok(())
}
