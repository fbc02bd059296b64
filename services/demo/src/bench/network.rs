//! Which network is measured, and networks of a known size with random weights.
//!
//! Networks that are named by their sizes are written as ONNX and imported, so that what is measured is
//! what an owner's file would become.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use concilium_network::limits::{MAXIMUM_CLASSES, MAXIMUM_SIZE, MAXIMUM_WEIGHTS, MINIMUM_CLASSES};
use concilium_network::onnx::{
    AttributeProto, DimensionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto, data_type,
};
use concilium_network::{ImportError, Network, import, import_file};
use prost::Message as _;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use thiserror::Error;

/// Fewest and most sizes of a perceptron: input, hidden layers, classes.
const SIZES: std::ops::RangeInclusive<usize> = 2..=65;

/// The dense layers of LeNet's size.
const LENET_DENSE: [usize; 3] = [256, 100, 10];

/// The operator set of the networks that are made here.
const OPSET: i64 = 17;

/// A network to measure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkSpec {
    /// Dense layers with ReLU between them: sizes of the input, of the hidden layers, and the classes.
    Perceptron(Vec<usize>),
    /// 28x28 pixels; convolutions 5x5 1-16 and 16-16, each with ReLU and 2x2 max-pooling; 256-100-10.
    LeNet,
    /// An owner's file.
    File(PathBuf),
}

/// Why a text names no network.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum NetworkSpecError {
    /// It is none of the known forms.
    #[error("`{0}` names no network; write mlp:784-128-128-10, lenet, or the path of an .onnx file")]
    Unknown(String),
    /// A size is no number in the limits.
    #[error(
        "size `{size}` of `{spec}` is no whole number from 1 to {MAXIMUM_SIZE}; write sizes as in \
         mlp:784-128-128-10"
    )]
    Size {
        /// What was written.
        spec: String,
        /// The size.
        size: String,
    },
    /// There are too few or too many sizes.
    #[error(
        "`{spec}` has {found} sizes; write {} to {}: the input, the hidden layers, the classes",
        SIZES.start(), SIZES.end()
    )]
    Layers {
        /// What was written.
        spec: String,
        /// Sizes in it.
        found: usize,
    },
    /// The layers have too many weights together.
    #[error("`{spec}` has {found} weights; the limit is {MAXIMUM_WEIGHTS}, so make its layers smaller")]
    Weights {
        /// What was written.
        spec: String,
        /// Its weights.
        found: usize,
    },
    /// The last size can't be a number of classes.
    #[error("`{spec}` ends in {found} classes; the limit is {MINIMUM_CLASSES} to {MAXIMUM_CLASSES}")]
    Classes {
        /// What was written.
        spec: String,
        /// Its classes.
        found: usize,
    },
}

impl FromStr for NetworkSpec {
    type Err = NetworkSpecError;

    fn from_str(text: &str) -> Result<Self, NetworkSpecError> {
        if text == "lenet" {
            return Ok(Self::LeNet);
        }
        if let Some(sizes) = text.strip_prefix("mlp:") {
            return perceptron_sizes(text, sizes).map(Self::Perceptron);
        }
        let path = Path::new(text);
        let onnx = path.extension().is_some_and(|end| end.eq_ignore_ascii_case("onnx"));
        if onnx { Ok(Self::File(path.to_owned())) } else { Err(NetworkSpecError::Unknown(text.to_owned())) }
    }
}

fn perceptron_sizes(spec: &str, sizes: &str) -> Result<Vec<usize>, NetworkSpecError> {
    let size = |size: &str| {
        let number = size.parse().ok().filter(|number| (1..=MAXIMUM_SIZE).contains(number));
        number.ok_or_else(|| NetworkSpecError::Size { spec: spec.to_owned(), size: size.to_owned() })
    };
    let sizes = sizes.split('-').map(size).collect::<Result<Vec<_>, _>>()?;
    if !SIZES.contains(&sizes.len()) {
        return Err(NetworkSpecError::Layers { spec: spec.to_owned(), found: sizes.len() });
    }
    let weights = sizes.windows(2).map(|pair| pair[0] * pair[1]).sum();
    if weights > MAXIMUM_WEIGHTS {
        return Err(NetworkSpecError::Weights { spec: spec.to_owned(), found: weights });
    }
    let classes = sizes[sizes.len() - 1];
    if !(MINIMUM_CLASSES..=MAXIMUM_CLASSES).contains(&classes) {
        return Err(NetworkSpecError::Classes { spec: spec.to_owned(), found: classes });
    }
    Ok(sizes)
}

impl fmt::Display for NetworkSpec {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Perceptron(sizes) => {
                let sizes: Vec<_> = sizes.iter().map(usize::to_string).collect();
                write!(formatter, "mlp:{}", sizes.join("-"))
            }
            Self::LeNet => formatter.write_str("lenet"),
            Self::File(path) => path.display().fmt(formatter),
        }
    }
}

impl NetworkSpec {
    /// Weights and biases of a model, unless they are in a file.
    pub(crate) fn parameters(&self) -> Option<usize> {
        let dense = |sizes: &[usize]| sizes.windows(2).map(|pair| (pair[0] + 1) * pair[1]).sum::<usize>();
        match self {
            Self::Perceptron(sizes) => Some(dense(sizes)),
            Self::LeNet => Some((25 + 1) * 16 + (25 * 16 + 1) * 16 + dense(&LENET_DENSE)),
            Self::File(_) => None,
        }
    }

    /// The file of one owner's model with weights from `seed`; `None` for a file that is there already.
    pub(crate) fn write(&self, seed: u64) -> Option<Vec<u8>> {
        let mut graph = Graph::new(seed);
        let shape = match self {
            Self::Perceptron(sizes) => {
                graph.dense_layers(sizes);
                vec![sizes[0]]
            }
            Self::LeNet => {
                graph.convolution([1, 16], 5);
                graph.relu_and_pool();
                graph.convolution([16, 16], 5);
                graph.relu_and_pool();
                graph.node("Flatten", &[], vec![]);
                graph.dense_layers(&LENET_DENSE);
                vec![1, 28, 28]
            }
            Self::File(_) => return None,
        };
        Some(graph.finish(&shape))
    }

    /// Reads what [`Self::write`] gave, or the file.
    ///
    /// # Errors
    /// [`ImportError`].
    pub(crate) fn read(&self, written: Option<&[u8]>) -> Result<Network, ImportError> {
        match (self, written) {
            (Self::File(path), _) => import_file(path),
            (_, written) => import(written.unwrap_or_default()),
        }
    }
}

/// A chain of nodes with random weights.
struct Graph {
    random: StdRng,
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
}

impl Graph {
    fn new(seed: u64) -> Self {
        Graph { random: StdRng::seed_from_u64(seed), nodes: Vec::new(), constants: Vec::new() }
    }

    /// Uniform weights of variance 2 / inputs (He et al. 2015), which keep the size of values.
    fn weights(&mut self, dims: &[usize], inputs: usize) -> String {
        let width = (6.0 / inputs as f32).sqrt();
        self.constant(dims, width)
    }

    fn constant(&mut self, dims: &[usize], width: f32) -> String {
        let name = format!("c{}", self.constants.len());
        let count: usize = dims.iter().product();
        let mut value = || width * (2.0 * self.random.random::<f32>() - 1.0);
        let raw_data = (0..count).flat_map(|_| value().to_le_bytes()).collect();
        self.constants.push(TensorProto {
            name: name.clone(),
            dims: dims.iter().map(|&size| size as i64).collect(),
            data_type: data_type::FLOAT,
            raw_data,
            ..TensorProto::default()
        });
        name
    }

    fn last(&self) -> String {
        self.nodes.last().map_or("x", |node| &node.output[0]).to_owned()
    }

    /// Adds a node that takes the last node's output and these constants.
    fn node(&mut self, operator: &str, constants: &[String], attribute: Vec<AttributeProto>) {
        let output = format!("n{}", self.nodes.len());
        let input = std::iter::once(self.last()).chain(constants.iter().cloned()).collect();
        self.nodes.push(NodeProto {
            op_type: operator.to_owned(),
            name: format!("{operator}-{output}"),
            input,
            output: vec![output],
            attribute,
            ..NodeProto::default()
        });
    }

    fn dense_layers(&mut self, sizes: &[usize]) {
        for (index, pair) in sizes.windows(2).enumerate() {
            if index > 0 {
                self.node("Relu", &[], vec![]);
            }
            let constants = [self.weights(pair, pair[0]), self.constant(&pair[1..], 0.1)];
            self.node("Gemm", &constants, vec![]);
        }
    }

    fn convolution(&mut self, [from, to]: [usize; 2], kernel: usize) {
        let constants =
            [self.weights(&[to, from, kernel, kernel], from * kernel * kernel), self.constant(&[to], 0.1)];
        self.node("Conv", &constants, vec![]);
    }

    fn relu_and_pool(&mut self) {
        self.node("Relu", &[], vec![]);
        let two = |name: &str| AttributeProto {
            name: name.to_owned(),
            ints: vec![2, 2],
            r#type: 7,
            ..AttributeProto::default()
        };
        self.node("MaxPool", &[], vec![two("kernel_shape"), two("strides")]);
    }

    fn finish(self, shape: &[usize]) -> Vec<u8> {
        let batch = DimensionProto { dim_param: Some("batch".to_owned()), ..DimensionProto::default() };
        let size =
            |&size: &usize| DimensionProto { dim_value: Some(size as i64), ..DimensionProto::default() };
        let tensor_type = TensorTypeProto {
            elem_type: data_type::FLOAT,
            shape: Some(TensorShapeProto {
                dim: std::iter::once(batch).chain(shape.iter().map(size)).collect(),
            }),
        };
        let r#type = Some(TypeProto { tensor_type: Some(tensor_type), ..TypeProto::default() });
        let output = ValueInfoProto { name: self.last(), r#type: None };
        let graph = GraphProto {
            name: "bench".to_owned(),
            input: vec![ValueInfoProto { name: "x".to_owned(), r#type }],
            output: vec![output],
            node: self.nodes,
            initializer: self.constants,
        };
        let version = OperatorSetIdProto { domain: String::new(), version: OPSET };
        ModelProto {
            ir_version: 8,
            producer_name: "concilium-demo bench".to_owned(),
            opset_import: vec![version],
            graph: Some(graph),
            ..ModelProto::default()
        }
        .encode_to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_networks_are_read_and_mistakes_named() {
        for text in ["mlp:784-128-128-10", "lenet", "some/model.onnx"] {
            let spec: NetworkSpec = text.parse().unwrap();
            assert_eq!(spec.to_string(), text);
        }
        for (text, told) in [
            ("resnet", "names no network"),
            ("mlp:784-x-10", "size `x`"),
            ("mlp:0-10", "size `0`"),
            ("mlp:70000-10", "from 1 to 65536"),
            ("mlp:10", "has 1 sizes"),
            ("mlp:784-128-1", "1 classes; the limit is 2 to 64"),
            ("mlp:784-65", "65 classes"),
            ("mlp:65536-65536-10", "4295622656 weights; the limit is 67108864"),
            ("model.pt", ".onnx"),
        ] {
            let error = text.parse::<NetworkSpec>().unwrap_err().to_string();
            assert!(error.contains(told), "{text}: {error}");
        }
    }

    #[test]
    fn networks_have_the_sizes_of_their_names_and_the_weights_of_their_seeds() {
        let read = |text: &str, seed| {
            let spec: NetworkSpec = text.parse().unwrap();
            spec.read(spec.write(seed).as_deref()).unwrap_or_else(|error| panic!("{text}: {error}"))
        };
        let network = read("mlp:784-128-128-10", 7);
        assert_eq!((network.input_features(), network.classes(), network.depth()), (784, 10, 3));
        assert_eq!(network.parameter_count(), 784 * 128 + 128 + 128 * 128 + 128 + 128 * 10 + 10);
        let lenet = read("lenet", 7);
        assert_eq!((lenet.input_shape(), lenet.classes()), (&[1, 28, 28][..], 10));
        let parameters = |text: &str| text.parse::<NetworkSpec>().unwrap().parameters();
        assert_eq!(Some(lenet.parameter_count()), parameters("lenet"));
        assert_eq!(Some(network.parameter_count()), parameters("mlp:784-128-128-10"));
        let row = ndarray::Array2::from_elem((1, 4), 0.5);
        let logits = |seed| read("mlp:4-3-2", seed).evaluate(row.view());
        assert_eq!(logits(1), logits(1));
        assert_ne!(logits(1), logits(2));
    }
}
