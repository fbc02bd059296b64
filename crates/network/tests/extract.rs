//! The part of a file that its scores depend on, as a file of its own.

#![allow(clippy::print_stdout, reason = "a reader of a failure needs to see these")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::{fs, path::Path};

use common::{floats, model, node, small_model, typed};
use concilium_network::{
    ImportOptions, extract_file, import, import_file,
    onnx::{DATA_LOCATION_EXTERNAL, ModelProto, StringStringEntryProto, data_type},
};
use ndarray::array;
use prost::Message as _;

fn written(folder: &Path, model: &ModelProto) -> std::path::PathBuf {
    let path = folder.join("model.onnx");
    fs::write(&path, model.encode_to_vec()).unwrap();
    path
}

#[test]
fn what_the_scores_do_not_depend_on_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let mut whole = ModelProto::decode(&small_model()[..]).unwrap();
    let graph = whole.graph.as_mut().unwrap();
    // Before the others, and of an operator that nobody knows.
    graph.node.insert(0, node("Unheard", &["x", "unused"], "beside"));
    graph.initializer.insert(0, floats("unused", &[2], &[7.0, 8.0]));
    graph.output.insert(0, typed("beside", data_type::INT64, None));
    let path = written(folder.path(), &whole);

    let extract = extract_file(&path, &ImportOptions::default()).unwrap();
    assert_eq!((&extract.sample_shape[..], extract.batch), (&[3][..], None));
    let part = ModelProto::decode(&extract.bytes[..]).unwrap().graph.unwrap();
    let names = |graph: &concilium_network::onnx::GraphProto| {
        let nodes: Vec<_> = graph.node.iter().map(|node| node.op_type.clone()).collect();
        let constants: Vec<_> = graph.initializer.iter().map(|tensor| tensor.name.clone()).collect();
        let outputs: Vec<_> = graph.output.iter().map(|output| output.name.clone()).collect();
        (nodes, constants, outputs)
    };
    let (nodes, constants, outputs) = names(&part);
    assert_eq!(nodes, ["Gemm", "Relu", "Gemm"]);
    assert_eq!(constants, ["w1", "b1", "w2", "b2"]);
    assert_eq!(outputs, ["y"]);

    let rows = array![[0.5, -1.0, 2.0], [0.0, 0.25, 1.0]];
    let logits = |network: concilium_network::Network| network.evaluate(rows.view());
    assert_eq!(logits(import(&extract.bytes).unwrap()), logits(import_file(&path).unwrap()));
}

#[test]
fn weights_in_other_files_are_in_the_part() {
    let folder = tempfile::tempdir().unwrap();
    let numbers: Vec<f32> = vec![1.0, -1.0, 0.5, 0.25, 2.0, -3.0];
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    fs::write(folder.path().join("w.bin"), bytes).unwrap();
    let mut weights = floats("w", &[3, 2], &[]);
    weights.raw_data.clear();
    weights.data_location = DATA_LOCATION_EXTERNAL;
    weights.external_data =
        vec![StringStringEntryProto { key: "location".to_owned(), value: "w.bin".to_owned() }];
    let whole = model(&[3], vec![node("MatMul", &["x", "w"], "y")], vec![weights]);
    let path = written(folder.path(), &whole);
    let extract = extract_file(&path, &ImportOptions::default()).unwrap();
    let rows = array![[1.0, 2.0, 3.0]];
    // Without a folder, other files could not be read.
    assert_eq!(import(&extract.bytes).unwrap().evaluate(rows.view()), array![[8.0, -9.5]]);
    assert!(import(&whole.encode_to_vec()).is_err());
}

#[test]
fn files_that_cannot_be_planned_are_refused_as_in_import() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |model: &ModelProto| {
        let path = written(folder.path(), model);
        let refusal = extract_file(&path, &ImportOptions::default()).err().map(|error| error.to_string());
        assert_eq!(refusal, import_file(&path).err().map(|error| error.to_string()));
        refusal.expect("it is refused")
    };
    let cycle = model(&[3], vec![node("Relu", &["y"], "h"), node("Add", &["h", "x"], "y")], vec![]);
    assert!(refused(&cycle).contains("depends on its own output"), "{}", refused(&cycle));
    let mut empty = cycle.clone();
    empty.graph = None;
    assert!(refused(&empty).contains("graph"));
}
