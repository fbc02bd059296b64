//! Hand-built ONNX models and seeded property tests.

#![allow(clippy::print_stdout, reason = "failures are repeated by the printed seed")]
#![allow(dead_code, reason = "each test program uses a part of this module")]

pub(crate) mod graphs;

use std::time::{SystemTime, UNIX_EPOCH};

use concilium_network::onnx::{
    AttributeProto, DimensionProto, GraphProto, ModelProto, NodeProto, OpaqueProto, OperatorSetIdProto,
    TensorProto, TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto, data_type,
};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use prost::Message;

/// A runner of `cases` cases whose seed is printed, and taken from CONCILIUM_TEST_SEED when it is set.
pub(crate) fn runner(cases: u32) -> TestRunner {
    let seed: u64 = match std::env::var("CONCILIUM_TEST_SEED") {
        Ok(seed) => seed.parse().expect("CONCILIUM_TEST_SEED must be a number"),
        Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64,
    };
    println!("CONCILIUM_TEST_SEED={seed}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

/// A FLOAT tensor.
pub(crate) fn floats(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        dims: dims.to_vec(),
        data_type: data_type::FLOAT,
        raw_data: values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        ..Default::default()
    }
}

/// An INT64 vector.
pub(crate) fn integers(name: &str, values: &[i64]) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        dims: vec![values.len() as i64],
        data_type: data_type::INT64,
        int64_data: values.to_vec(),
        ..Default::default()
    }
}

/// A node with one output, named after it.
pub(crate) fn node(operator: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto {
        op_type: operator.to_owned(),
        name: format!("{operator}_{output}"),
        input: inputs.iter().map(|&input| input.to_owned()).collect(),
        output: vec![output.to_owned()],
        ..Default::default()
    }
}

/// Parameters of nodes.
pub(crate) trait WithAttributes {
    /// Adds an integer.
    fn integer(self, name: &str, value: i64) -> Self;
    /// Adds a list of integers.
    fn integers(self, name: &str, values: &[i64]) -> Self;
    /// Adds a number.
    fn float(self, name: &str, value: f32) -> Self;
    /// Adds a text.
    fn text(self, name: &str, value: &str) -> Self;
    /// Adds a tensor.
    fn tensor(self, name: &str, value: TensorProto) -> Self;
}

impl WithAttributes for NodeProto {
    fn integer(mut self, name: &str, value: i64) -> Self {
        let name = name.to_owned();
        self.attribute.push(AttributeProto { name, i: Some(value), r#type: 2, ..Default::default() });
        self
    }

    fn integers(mut self, name: &str, values: &[i64]) -> Self {
        let (name, ints) = (name.to_owned(), values.to_vec());
        self.attribute.push(AttributeProto { name, ints, r#type: 7, ..Default::default() });
        self
    }

    fn float(mut self, name: &str, value: f32) -> Self {
        let name = name.to_owned();
        self.attribute.push(AttributeProto { name, f: Some(value), r#type: 1, ..Default::default() });
        self
    }

    fn text(mut self, name: &str, value: &str) -> Self {
        let (name, s) = (name.to_owned(), Some(value.as_bytes().to_vec()));
        self.attribute.push(AttributeProto { name, s, r#type: 3, ..Default::default() });
        self
    }

    fn tensor(mut self, name: &str, value: TensorProto) -> Self {
        let name = name.to_owned();
        self.attribute.push(AttributeProto { name, t: Some(value), r#type: 4, ..Default::default() });
        self
    }
}

/// A float tensor of the given shape; `None` is a free dimension.
pub(crate) fn value_info(name: &str, shape: &[Option<i64>]) -> ValueInfoProto {
    let dim = shape
        .iter()
        .map(|&dim_value| DimensionProto {
            dim_value,
            dim_param: dim_value.is_none().then(|| "batch".to_owned()),
        })
        .collect();
    typed(name, data_type::FLOAT, Some(TensorShapeProto { dim }))
}

/// A tensor of any element type.
pub(crate) fn typed(name: &str, elem_type: i32, shape: Option<TensorShapeProto>) -> ValueInfoProto {
    ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto {
            tensor_type: Some(TensorTypeProto { elem_type, shape }),
            ..Default::default()
        }),
    }
}

/// A list of maps, as `ZipMap` gives.
pub(crate) fn sequence(name: &str) -> ValueInfoProto {
    ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto { sequence_type: Some(OpaqueProto {}), ..Default::default() }),
    }
}

/// A model from input `x` of shape `[batch, shape...]` to output `y`, operator set 17.
pub(crate) fn model(shape: &[i64], nodes: Vec<NodeProto>, constants: Vec<TensorProto>) -> ModelProto {
    let mut dims = vec![None];
    dims.extend(shape.iter().map(|&size| Some(size)));
    ModelProto {
        ir_version: 8,
        producer_name: "test".to_owned(),
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 17 }],
        graph: Some(GraphProto {
            name: "graph".to_owned(),
            node: nodes,
            initializer: constants,
            input: vec![value_info("x", &dims)],
            output: vec![ValueInfoProto { name: "y".to_owned(), r#type: None }],
        }),
        ..Default::default()
    }
}

/// 3-2-2 with all weights different, as bytes.
pub(crate) fn small_model() -> Vec<u8> {
    model(
        &[3],
        vec![
            node("Gemm", &["x", "w1", "b1"], "h").integer("transB", 1),
            node("Relu", &["h"], "r"),
            node("Gemm", &["r", "w2", "b2"], "y").float("alpha", 1.0),
        ],
        vec![
            floats("w1", &[2, 3], &[0.5, -1.0, 0.25, 2.0, 0.125, -0.5]),
            floats("b1", &[2], &[0.1, -0.2]),
            floats("w2", &[2, 2], &[1.0, -1.0, 0.5, 0.75]),
            floats("b2", &[2], &[0.0, 0.3]),
        ],
    )
    .encode_to_vec()
}
