//! Hostile and damaged files: refused with a typed error, never a panic, a hang or a large allocation.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::{cell::Cell, fs, io::Write};

use common::{WithAttributes, floats, integers, model, node, small_model, typed, value_info};
use concilium_network::{
    ImportError, import,
    import::{MAXIMUM_FILE_BYTES, MAXIMUM_NODES, SUPPORTED},
    import_file,
    onnx::{DATA_LOCATION_EXTERNAL, ModelProto, NodeProto, StringStringEntryProto, TensorProto, data_type},
};
use ndarray::Array2;
use proptest::prelude::*;
use prost::Message;

fn refusal(model: &ModelProto) -> ImportError {
    import(&model.encode_to_vec()).err().expect("the model must be refused")
}

fn identity(name: &str) -> TensorProto {
    floats(name, &[2, 2], &[1.0, 0.0, 0.0, 1.0])
}

/// Imports, and evaluates what was accepted.
fn survive(bytes: &[u8]) {
    if let Ok(network) = import(bytes) {
        let logits = network.evaluate(Array2::ones((1, network.input_features())).view());
        assert_eq!(logits.dim(), (1, network.classes()));
    }
}

#[test]
fn the_small_model_is_accepted() {
    let network = import(&small_model()).unwrap();
    assert_eq!((network.input_features(), network.steps().len(), network.classes()), (3, 3, 2));
}

#[test]
fn empty_and_garbage() {
    assert!(matches!(import(&[]), Err(ImportError::Empty)));
    let mut file = tempfile::NamedTempFile::new().unwrap();
    assert!(matches!(import_file(file.path()), Err(ImportError::Empty)));
    let garbage: Vec<u8> =
        (0..1_u32 << 20).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    file.write_all(&garbage).unwrap();
    assert!(matches!(import_file(file.path()), Err(ImportError::Malformed { .. })));
    for byte in [0x00, 0x0a, 0x3a, 0x7f, 0xff] {
        assert!(import(&vec![byte; 1 << 20]).is_err(), "{byte:#x}");
    }
    let missing = import_file(file.path().with_extension("missing")).err().unwrap();
    assert!(missing.to_string().contains(".missing"), "{missing}");
    // Decodes as a model without a graph.
    let error = import(&ModelProto { ir_version: 8, ..Default::default() }.encode_to_vec()).err().unwrap();
    assert!(error.to_string().contains("no graph"), "{error}");
}

#[test]
fn large_files_are_refused_by_their_size() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(MAXIMUM_FILE_BYTES + 1).unwrap();
    assert!(matches!(import_file(file.path()), Err(ImportError::FileTooLarge { .. })));
}

#[test]
fn every_truncation_is_survived() {
    let bytes = small_model();
    for length in 0..bytes.len() {
        survive(&bytes[..length]);
    }
    // Without its end the graph is cut off, whatever was cut.
    assert!(import(&bytes[..bytes.len() / 2]).is_err());
}

#[test]
fn every_bit_flip_is_survived() {
    let bytes = small_model();
    for position in 0..bytes.len() {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[position] ^= 1 << bit;
            survive(&flipped);
        }
    }
}

#[test]
fn random_bytes_are_survived() {
    common::runner(2000)
        .run(&proptest::collection::vec(any::<u8>(), 0..400), |bytes| {
            survive(&bytes);
            Ok(())
        })
        .unwrap();
}

#[test]
fn random_damage_is_survived() {
    let bytes = small_model();
    let damage = proptest::collection::vec((0..bytes.len(), any::<u8>()), 1..6);
    common::runner(4000)
        .run(&damage, |damage| {
            let mut damaged = bytes.clone();
            for (position, byte) in damage {
                damaged[position] = byte;
            }
            survive(&damaged);
            Ok(())
        })
        .unwrap();
}

/// Nodes of any operator over a few names, so that graphs are often connected and sometimes cyclic.
fn any_node() -> impl Strategy<Value = NodeProto> {
    const NAMES: &[&str] = &["x", "a", "b", "c", "w", "v", "scalar", "axes", "shape", "empty", ""];
    const PARAMETERS: &[&str] = &[
        "axis",
        "axes",
        "perm",
        "to",
        "transB",
        "transA",
        "start",
        "end",
        "starts",
        "ends",
        "value",
        "value_ints",
        "epsilon",
        "alpha",
        "allowzero",
        "kernel_shape",
        "strides",
        "pads",
        "dilations",
        "group",
        "ceil_mode",
        "keepdims",
        "output_padding",
        "output_shape",
        "vectors_per_class",
        "classlabels_ints",
        "coefficients",
        "equation",
        "activation",
        "blocksize",
    ];
    let integer = prop_oneof![-3_i64..12, Just(i64::MIN), Just(i64::MAX), Just(1_i64 << 40)];
    let attribute = (proptest::sample::select(PARAMETERS), proptest::collection::vec(integer, 0..4));
    (
        proptest::sample::select(SUPPORTED),
        proptest::collection::vec(proptest::sample::select(NAMES), 0..6),
        proptest::collection::vec(attribute, 0..4),
    )
        .prop_map(|(operator, inputs, attributes)| {
            let mut plain = node(operator.name, &inputs, "");
            if operator.domain != "ai.onnx" {
                plain.domain = operator.domain.to_owned();
            }
            attributes.into_iter().fold(plain, |node, (name, values)| {
                let first = values.first().copied().unwrap_or(0);
                match name {
                    "epsilon" | "alpha" => node.float(name, first as f32),
                    "value" => node.tensor(name, integers("", &values)),
                    "axes" | "perm" | "starts" | "ends" | "value_ints" | "kernel_shape" | "strides"
                    | "pads" | "dilations" | "output_padding" | "output_shape" | "vectors_per_class"
                    | "classlabels_ints" => node.integers(name, &values),
                    "coefficients" | "rho" | "support_vectors" | "prob_a" => {
                        values.iter().fold(node, |node, &value| node.float(name, value as f32))
                    }
                    "equation" => {
                        let known =
                            ["bij,bjk->bik", "bi,ij->bj", "ij,bj->bi", "bi,bi->b", "bij,bij->bji", "b->"];
                        node.text(name, known[first.rem_euclid(known.len() as i64) as usize])
                    }
                    "activation" => node.text(name, if first > 0 { "Relu" } else { "LeakyRelu" }),
                    _ => node.integer(name, first),
                }
            })
        })
}

#[test]
fn random_graphs_are_survived() {
    let nodes = proptest::collection::vec(any_node(), 4);
    const SHAPES: &[&[i64]] = &[&[2], &[2, 2], &[1, 2, 2], &[2, 2, 4], &[2, 1, 2, 2]];
    let strategy =
        (nodes, 7_i64..=28, proptest::collection::vec(-2_i64..5, 0..4), proptest::sample::select(SHAPES));
    let accepted = Cell::new(0);
    let result = common::runner(20_000).run(&strategy, |(mut nodes, opset, shape, input)| {
        for (node, output) in nodes.iter_mut().zip(["a", "b", "c", "y"]) {
            node.output = vec![output.to_owned()];
        }
        let constants = vec![
            identity("w"),
            floats("v", &[2], &[0.5, 2.0]),
            floats("scalar", &[], &[3.0]),
            integers("axes", &[1]),
            integers("shape", &shape),
            floats("empty", &[0, 3], &[]),
        ];
        let mut random = model(input, nodes, constants);
        random.opset_import[0].version = opset;
        survive(&random.encode_to_vec());
        Ok(())
    });
    result.unwrap();
    // The generator must reach accepted models too, or it tests nothing but refusals.
    common::runner(5000)
        .run(&any_node(), |mut node| {
            node.output = vec!["y".to_owned()];
            let random = model(&[2], vec![node], vec![identity("w"), floats("v", &[2], &[0.5, 2.0])]);
            accepted.set(accepted.get() + usize::from(import(&random.encode_to_vec()).is_ok()));
            Ok(())
        })
        .unwrap();
    assert!(accepted.get() > 0);
}

/// Weights in a file beside the model are read; nothing else is.
#[test]
fn external_data_is_read_from_the_models_folder_only() {
    let outside = tempfile::tempdir().unwrap();
    let folder = outside.path().join("model");
    fs::create_dir_all(folder.join("inner")).unwrap();
    let weights: Vec<u8> = [1.0_f32, 2.0, 3.0, 4.0].iter().flat_map(|weight| weight.to_le_bytes()).collect();
    let padded = [&[9; 8][..], &weights, &[9; 4]].concat();
    for path in [folder.join("w.bin"), folder.join("inner/w.bin"), outside.path().join("w.bin")] {
        fs::write(path, &padded).unwrap();
    }
    let entry =
        |key: &str, value: &str| StringStringEntryProto { key: key.to_owned(), value: value.to_owned() };
    let read = |location: &str, offset: &str, length: Option<&str>| {
        let mut tensor = floats("w", &[2, 2], &[]);
        tensor.data_location = DATA_LOCATION_EXTERNAL;
        tensor.external_data = vec![entry("location", location), entry("offset", offset)];
        tensor.external_data.extend(length.map(|length| entry("length", length)));
        let path = folder.join("model.onnx");
        let model = model(&[2], vec![node("MatMul", &["x", "w"], "y")], vec![tensor]);
        fs::write(&path, model.encode_to_vec()).unwrap();
        import_file(&path).map(|network| network.evaluate(ndarray::array![[1.0, 10.0]].view()))
    };
    for location in ["w.bin", "inner/w.bin", "./w.bin"] {
        for length in [Some("16"), None] {
            assert_eq!(read(location, "8", length).unwrap(), ndarray::array![[31.0, 42.0]]);
        }
    }
    let refused = |location: &str, offset: &str, length: Option<&str>| {
        let error = read(location, offset, length).expect_err("must be refused");
        assert!(matches!(error, ImportError::ExternalData { .. }), "{error}");
        error.to_string()
    };
    let absolute = outside.path().join("w.bin");
    for location in ["../w.bin", "inner/../../w.bin", absolute.to_str().unwrap(), "", "/etc/passwd"] {
        assert!(refused(location, "8", None).contains("only files in the model's own folder"), "{location}");
    }
    assert!(refused("absent.bin", "8", None).contains("No such file"));
    assert!(refused("inner", "0", None).contains("no regular file"));
    assert!(refused("w.bin", "13", None).contains("16 bytes from 13 on, the file has 28"));
    assert!(refused("w.bin", &u64::MAX.to_string(), None).contains("the file has 28"));
    assert!(refused("w.bin", "-8", None).contains("its offset is no number"));
    assert!(refused("w.bin", "8", Some("17")).contains("it names 17 bytes, its shape takes 16"));
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(outside.path().join("w.bin"), folder.join("link.bin")).unwrap();
        assert!(refused("link.bin", "8", None).contains("only files in the model's own folder"));
        std::os::unix::fs::symlink("w.bin", folder.join("inside.bin")).unwrap();
        assert!(read("inside.bin", "8", None).is_ok());
    }
    // What a tensor claims is not reserved.
    let mut huge = floats("w", &[1 << 20, 1 << 20], &[]);
    huge.external_data = vec![entry("location", "w.bin")];
    let path = folder.join("huge.onnx");
    fs::write(&path, model(&[2], vec![node("MatMul", &["x", "w"], "y")], vec![huge]).encode_to_vec())
        .unwrap();
    let error = import_file(&path).err().expect("must be refused").to_string();
    assert!(error.contains("bytes in other files"), "{error}");
}

#[test]
fn external_data_is_refused_by_name() {
    let mut tensor = floats("secret.weight", &[2, 2], &[]);
    tensor.data_location = DATA_LOCATION_EXTERNAL;
    let entry =
        |key: &str, value: &str| StringStringEntryProto { key: key.to_owned(), value: value.to_owned() };
    tensor.external_data = vec![entry("offset", "0"), entry("location", "../../etc/passwd\u{1b}[2J")];
    let error = refusal(&model(&[2], vec![node("MatMul", &["x", "secret.weight"], "y")], vec![tensor]));
    assert!(matches!(error, ImportError::ExternalData { .. }));
    let text = error.to_string();
    assert!(text.contains("secret.weight") && text.contains("../../etc/passwd"), "{text}");
    assert!(!text.contains('\u{1b}'), "control characters must be escaped: {text}");
    // Also inside a Constant node.
    let mut tensor = floats("inner", &[2, 2], &[]);
    tensor.data_location = DATA_LOCATION_EXTERNAL;
    let nodes = vec![node("Constant", &[], "w").tensor("value", tensor), node("MatMul", &["x", "w"], "y")];
    assert!(matches!(refusal(&model(&[2], nodes, vec![])), ImportError::ExternalData { .. }));
}

#[test]
fn broken_weights_are_named_with_their_index() {
    for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let weights = floats("layer.weight", &[2, 2], &[1.0, 0.0, broken, 1.0]);
        let error = refusal(&model(&[2], vec![node("MatMul", &["x", "layer.weight"], "y")], vec![weights]));
        let text = error.to_string();
        assert!(matches!(error, ImportError::NotFinite { index: 2, .. }), "{text}");
        assert!(text.contains("\"layer.weight\"") && text.contains("index 2"), "{text}");
    }
    let zero = floats("deviation", &[2], &[1.0, 0.0]);
    let error = refusal(&model(&[2], vec![node("Div", &["x", "deviation"], "y")], vec![zero]));
    assert!(matches!(error, ImportError::DivisionByZero { index: 1, .. }), "{error}");
    // Finite in the file, infinite when multiplied out.
    let huge = || TensorProto {
        name: "huge".to_owned(),
        dims: vec![1],
        data_type: data_type::DOUBLE,
        double_data: vec![1e300],
        ..Default::default()
    };
    let nodes = vec![node("Mul", &["x", "huge"], "a"), node("Mul", &["a", "huge"], "y")];
    let error = refusal(&model(&[2], nodes, vec![huge()]));
    assert!(matches!(error, ImportError::Network(_)), "{error}");
}

#[test]
fn broken_graphs() {
    let nodes = vec![node("MatMul", &["x", "nowhere"], "y")];
    let error = refusal(&model(&[2], nodes, vec![]));
    assert!(error.to_string().contains("\"MatMul_y\" uses \"nowhere\""), "{error}");
    let error = refusal(&model(&[2], vec![node("Relu", &["x"], "z")], vec![]));
    assert!(matches!(error, ImportError::MissingValue { .. }), "{error}");

    let nodes = vec![node("Add", &["x", "b"], "a"), node("Relu", &["a"], "b"), node("Identity", &["b"], "y")];
    assert!(matches!(refusal(&model(&[2], nodes, vec![])), ImportError::Cycle { .. }));
    let nodes = vec![node("Relu", &["y"], "y")];
    assert!(matches!(refusal(&model(&[2], nodes, vec![])), ImportError::Cycle { .. }));

    let nodes = vec![node("Relu", &["x"], "y"), node("Neg", &["x"], "y")];
    assert!(matches!(refusal(&model(&[2], nodes, vec![])), ImportError::DuplicateValue { .. }));
    let nodes = vec![node("Relu", &["x"], "y")];
    let constants = vec![identity("w"), identity("w")];
    assert!(matches!(refusal(&model(&[2], nodes, constants)), ImportError::DuplicateValue { .. }));

    let error = refusal(&model(&[2], vec![node("Identity", &["w"], "y")], vec![identity("w")]));
    assert!(matches!(error, ImportError::Input { .. }), "{error}");
    let error = refusal(&model(&[3], vec![node("MatMul", &["x", "w"], "y")], vec![identity("w")]));
    assert_eq!(error.to_string(), "node \"MatMul_y\": expected weights for 3 inputs, got weights for 2");
    let error = refusal(&model(&[2], vec![node("Gemm", &["x"], "y")], vec![]));
    assert!(error.to_string().contains("input 1 is missing"), "{error}");
    // A node need not come after those that it uses.
    let nodes = vec![node("Relu", &["a"], "y"), node("Neg", &["x"], "a")];
    assert!(import(&model(&[2], nodes, vec![]).encode_to_vec()).is_ok());
}

#[test]
fn inputs_that_are_no_single_tensor_of_known_shape() {
    let mut base = model(&[2], vec![node("Relu", &["x"], "y")], vec![]);
    let mut text_of = |input| {
        base.graph.as_mut().unwrap().input = vec![input];
        refusal(&base).to_string()
    };
    assert!(text_of(value_info("x", &[None, None])).contains("no fixed size in dimension 1 (batch)"));
    assert!(text_of(value_info("x", &[Some(4)])).contains("has 1 dimensions"));
    assert!(text_of(value_info("x", &[None, Some(0)])).contains("has size 0 in dimension 1"));
    assert!(text_of(value_info("x", &[None, Some(-1)])).contains("has size -1"));
    assert!(text_of(typed("x", data_type::FLOAT, None)).contains("has no shape"));
    assert!(text_of(typed("x", data_type::INT64, None)).contains("element type 7"));
    let huge = text_of(value_info("x", &[None, Some(i64::MAX), Some(i64::MAX)]));
    assert!(huge.contains("at most 65536 features"), "{huge}");

    let mut two = model(&[2], vec![node("Add", &["x", "z"], "y")], vec![]);
    two.graph.as_mut().unwrap().input.push(value_info("z", &[None, Some(2)]));
    assert!(refusal(&two).to_string().contains("2 inputs of the model (\"x\", \"z\")"));
}

#[test]
fn small_files_cannot_reserve_much_memory() {
    // Each of these is a few kilobytes and would take gigabytes if it were carried out.
    let column = floats("column", &[60_000, 1], &vec![1.0; 60_000]);
    let row = floats("row", &[1, 60_000], &vec![1.0; 60_000]);
    let outer = vec![node("Add", &["column", "row"], "w"), node("MatMul", &["x", "w"], "y")];
    let error = refusal(&model(&[60_000], outer, vec![column.clone(), row.clone()]));
    assert!(matches!(error, ImportError::TooLarge { .. }), "{error}");

    let bottleneck = vec![node("MatMul", &["x", "column"], "a"), node("MatMul", &["a", "row"], "y")];
    let error = refusal(&model(&[60_000], bottleneck, vec![column, row]));
    assert!(matches!(error, ImportError::TooLarge { .. }), "{error}");

    let mut doubling = vec![node("Concat", &["w", "w"], "c0").integer("axis", 0)];
    for step in 1..60 {
        let (before, after) = (format!("c{}", step - 1), format!("c{step}"));
        doubling.push(node("Concat", &[&before, &before], &after).integer("axis", 0));
    }
    doubling.push(node("MatMul", &["x", "c59"], "y"));
    for start in [identity("w"), floats("w", &[2, 0], &[])] {
        let error = refusal(&model(&[2], doubling.clone(), vec![start]));
        assert!(matches!(error, ImportError::TooLarge { .. }), "{error}");
    }

    let many: Vec<NodeProto> = (0..=MAXIMUM_NODES).map(|_| NodeProto::default()).collect();
    let error = refusal(&model(&[2], many, vec![]));
    assert!(matches!(error, ImportError::TooMany { what: "nodes", .. }), "{error}");

    let lie = TensorProto { dims: vec![1 << 20, 1 << 20], ..floats("w", &[], &[1.0; 4]) };
    let error = refusal(&model(&[2], vec![node("MatMul", &["x", "w"], "y")], vec![lie]));
    assert!(matches!(error, ImportError::TensorData { .. }), "{error}");
}

#[test]
fn fusing_takes_bounded_work() {
    // Chains of square layers without ReLU between them.
    let size = 1024_usize;
    let weights = floats("w", &[1024, 1024], &vec![0.0; size * size]);
    let mut nodes = vec![node("MatMul", &["x", "w"], "h0")];
    for step in 1..40 {
        nodes.push(node("MatMul", &[&format!("h{}", step - 1), "w"], &format!("h{step}")));
    }
    nodes.push(node("Identity", &["h39"], "y"));
    let error = refusal(&model(&[1024], nodes, vec![weights]));
    assert!(matches!(error, ImportError::TooMuchWork { .. } | ImportError::TooLarge { .. }), "{error}");
}

#[test]
fn deep_chains_do_not_recurse() {
    let mut nodes = vec![node("Identity", &["x"], "n0")];
    for step in 1..MAXIMUM_NODES - 1 {
        nodes.push(node("Identity", &[&format!("n{}", step - 1)], &format!("n{step}")));
    }
    nodes.push(node("Identity", &[&format!("n{}", MAXIMUM_NODES - 2)], "y"));
    assert!(import(&model(&[2], nodes.clone(), vec![]).encode_to_vec()).is_ok());
    nodes.reverse();
    assert!(import(&model(&[2], nodes, vec![]).encode_to_vec()).is_ok());

    let mut relus = vec![node("Neg", &["x"], "n0")];
    for step in 1..200 {
        relus.push(node("Relu", &[&format!("n{}", 2 * step - 2)], &format!("n{}", 2 * step - 1)));
        relus.push(node("Neg", &[&format!("n{}", 2 * step - 1)], &format!("n{}", 2 * step)));
    }
    relus.push(node("Identity", &["n398"], "y"));
    let error = refusal(&model(&[2], relus, vec![]));
    assert!(error.to_string().contains("more than 128 steps with messages one after the other"), "{error}");
}
