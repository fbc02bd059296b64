//! Reads feed-forward classifiers from ONNX, as PyTorch and scikit-learn export them.
//!
//! The graph is walked once, from the input to the scores of the classes. Each name stands for a
//! constant, for an affine function of the input or of a step's result, or for the scores
//! themselves; so whatever is linear between two other steps ends up in one. A final softmax or
//! sigmoid is dropped because it does not change the order of the classes; elsewhere they are computed.
//! What computes a label from the scores is not looked at.
//!
//! The file is not trusted: sizes are checked against the data before memory is reserved, nothing
//! recurses over the graph, and of other files only those in the model's folder are read.

mod activation;
mod budget;
mod builder;
mod classical;
mod constant;
mod einsum;
mod error;
mod external;
mod extract;
mod graph;
mod layout;
mod linear;
mod node;
mod operators;
mod product;
mod quantised;
mod rectify;
mod reduce;
mod rows;
mod runtime;
mod shape;
mod smooth;
mod support;
mod tensor;
mod transposed;
mod trees;
mod value;
mod vectors;
mod windows;
mod wire;

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use prost::Message;
use zeroize::{Zeroize, Zeroizing};

pub use self::error::{ImportError, UnsupportedNode, UnsupportedNodes};
pub use self::extract::{Extract, extract_file};
pub use self::support::{Cost, SUPPORTED, SupportedOperator, table as operator_table};
use self::{
    activation::Activation,
    budget::Budget,
    builder::Builder,
    error::{escaped, quoted},
    graph::{Plan, Provider},
    node::{Node, node_name},
    value::{DIVISOR_DEPENDS_ON_THE_INPUT, Failure, ONLY_AT_THE_END, Source, Value},
};
use crate::{
    ending::Ending,
    model::{Network, Origin, Step},
    onnx::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto},
    program::Function,
};

/// Largest file that is read, 256 MiB.
pub const MAXIMUM_FILE_BYTES: u64 = 256 << 20;

/// Most nodes of a graph.
pub const MAXIMUM_NODES: usize = 10_000;

/// Most elements of all constants, intermediate results and layers together, 64 Mi.
pub const MAXIMUM_ELEMENTS: usize = 1 << 26;

/// Most multiplications for fusing consecutive layers, 2^34.
pub const MAXIMUM_OPERATIONS: u64 = 1 << 34;

/// Most dimensions of a tensor.
pub const MAXIMUM_RANK: usize = 16;

/// Oldest version of the ONNX operator set that is read; older ones broadcast differently.
pub const MINIMUM_OPSET: i64 = 7;

/// Newest version of the ONNX operator set that is read.
pub const MAXIMUM_OPSET: i64 = 28;

/// What the owner chooses of a model that leaves a choice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImportOptions {
    /// Name of the output that holds the scores of the classes; otherwise the only one that can.
    pub output: Option<String>,
}

impl ImportOptions {
    /// With the output of this name, if one is given.
    #[must_use]
    pub fn with_output(output: Option<String>) -> Self {
        Self { output }
    }
}

/// Reads a network from an ONNX file. Initialisers that are kept in other files are read from the model's
/// folder.
///
/// # Errors
/// As [`import`], and when the file cannot be read or is larger than [`MAXIMUM_FILE_BYTES`].
pub fn import_file(path: impl AsRef<Path>) -> Result<Network, ImportError> {
    import_file_with(path, &ImportOptions::default())
}

/// As [`import_file`], with what the owner has chosen.
///
/// # Errors
/// As [`import_file`], and when what is chosen is not there.
pub fn import_file_with(path: impl AsRef<Path>, options: &ImportOptions) -> Result<Network, ImportError> {
    let (bytes, folder) = read(path.as_ref())?;
    import_from(&bytes, folder.as_deref(), options)
}

/// The bytes of a file, and its folder.
fn read(path: &Path) -> Result<(Zeroizing<Vec<u8>>, Option<PathBuf>), ImportError> {
    let failed = |source| ImportError::File { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    if size > MAXIMUM_FILE_BYTES {
        return Err(ImportError::FileTooLarge { bytes: size });
    }
    // Sized at once: growing would leave copies of weights behind. A pipe has no size, hence the limit.
    let mut bytes = Zeroizing::new(Vec::with_capacity(size as usize + 1));
    file.take(MAXIMUM_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    let folder = path.parent();
    let folder = folder.map(|folder| if folder.as_os_str().is_empty() { Path::new(".") } else { folder });
    Ok((bytes, folder.map(Path::to_owned)))
}

/// Reads a network from the bytes of an ONNX model.
///
/// # Errors
/// [`ImportError`]. If the scores depend on nodes that are not supported, it is
/// [`ImportError::Unsupported`] with all of them.
pub fn import(bytes: &[u8]) -> Result<Network, ImportError> {
    import_with(bytes, &ImportOptions::default())
}

/// As [`import`], with what the owner has chosen.
///
/// # Errors
/// As [`import`], and when what is chosen is not there.
pub fn import_with(bytes: &[u8], options: &ImportOptions) -> Result<Network, ImportError> {
    import_from(bytes, None, options)
}

fn import_from(bytes: &[u8], folder: Option<&Path>, options: &ImportOptions) -> Result<Network, ImportError> {
    let (mut model, opset) = open(bytes, folder)?;
    let graph = model.0.graph.as_mut().expect("a model that is opened has a graph");
    let plan = graph::plan(graph, options.output.as_deref())?;
    let mut origin = origin(graph, &plan, opset, &model.0.producer_name, &model.0.producer_version);
    let (shape, batch) = graph::input_shape(&graph.input[plan.input])?;

    let walk = Walk {
        opset,
        opsets: &model.0.opset_import,
        batch,
        input: Activation::input(shape.clone()),
        builder: Builder::default(),
        budget: Budget::default(),
        values: HashMap::new(),
        sources: BTreeMap::new(),
        unsupported: BTreeMap::new(),
    };
    let (steps, ending) = walk.run(graph, &plan)?;
    origin.ending = ending;
    Ok(Network::new(shape, steps)?.with_origin(origin))
}

/// Decodes a model that has a graph, reads its weights in other files, and gives the version of its
/// operator set.
fn open(bytes: &[u8], folder: Option<&Path>) -> Result<(ErasedOnDrop, i64), ImportError> {
    if bytes.is_empty() {
        return Err(ImportError::Empty);
    }
    if bytes.len() as u64 > MAXIMUM_FILE_BYTES {
        return Err(ImportError::FileTooLarge { bytes: bytes.len() as u64 });
    }
    wire::scan(bytes)?;
    let model =
        ModelProto::decode(bytes).map_err(|error| ImportError::Malformed { reason: error.to_string() })?;
    let mut model = ErasedOnDrop(model);
    let opset = default_opset(&model.0.opset_import);
    let Some(graph) = model.0.graph.as_mut() else {
        return Err(ImportError::Malformed { reason: "it holds no graph".to_owned() });
    };
    let opset = opset
        .filter(|version| (MINIMUM_OPSET..=MAXIMUM_OPSET).contains(version))
        .ok_or(ImportError::OperatorSet { found: opset })?;
    external::load(&mut graph.initializer, folder)?;
    Ok((model, opset))
}

/// Overwrites the constants of a model when it is dropped.
struct ErasedOnDrop(ModelProto);

impl Drop for ErasedOnDrop {
    fn drop(&mut self) {
        if let Some(graph) = &mut self.0.graph {
            graph.initializer.iter_mut().for_each(tensor::erase);
            for attribute in graph.node.iter_mut().flat_map(|node| &mut node.attribute) {
                attribute.t.iter_mut().for_each(tensor::erase);
                // Classical models keep their coefficients here.
                attribute.floats.zeroize();
            }
        }
    }
}

/// Version of the default operator set; the newest when it is named several times.
fn default_opset(imports: &[OperatorSetIdProto]) -> Option<i64> {
    imports
        .iter()
        .filter(|import| operators::is_default_domain(&import.domain))
        .map(|import| import.version)
        .max()
}

fn origin(graph: &GraphProto, plan: &Plan, opset: i64, producer: &str, version: &str) -> Origin {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for &node in &plan.order {
        *counts.entry(escaped(&graph.node[node].op_type)).or_default() += 1;
    }
    Origin {
        producer: escaped(format!("{producer} {version}").trim()),
        opset,
        operators: counts.into_iter().collect(),
        ending: Ending::default(),
    }
}

/// The value of a node. The result of a Sigmoid or Softmax is computed only for a node that needs it: after the
/// last layer it does not change the order of the classes.
fn evaluate(node: &mut Node<'_>, sources: &BTreeMap<usize, Source>) -> Result<Vec<Value>, Failure> {
    let source = |index: usize| sources.get(&index).copied();
    if rows::enter(node)? {
        if node.proto.op_type == "Sigmoid" {
            return Ok(vec![rows::leave(smooth::function(node, Function::Sigmoid)?)]);
        }
        let values = operators::evaluate(node)?;
        return Ok(values.into_iter().map(rows::leave).collect());
    }
    if let Some(value) = smooth::gated(node, source)? {
        return Ok(vec![value]);
    }
    match operators::evaluate(node) {
        Err(Failure::Unsupported(hint)) => match smooth::computed(node, source)? {
            Some(inputs) => {
                node.inputs = inputs;
                operators::evaluate(node)
            }
            None => Err(Failure::Unsupported(hint)),
        },
        result => result,
    }
}

/// True for a classifier that gives its scores as they are.
fn plain(node: &NodeProto) -> bool {
    let transform = node.attribute.iter().find(|attribute| attribute.name == "post_transform");
    transform
        .and_then(|attribute| attribute.s.as_deref())
        .is_none_or(|transform| matches!(transform, b"" | b"NONE"))
}

/// State of one walk over the graph.
struct Walk<'a> {
    opset: i64,
    opsets: &'a [OperatorSetIdProto],
    /// Size of the batch when the model fixes it.
    batch: Option<usize>,
    /// The input as a value.
    input: Activation,
    builder: Builder,
    budget: Budget,
    /// Values of all names so far.
    values: HashMap<String, Value>,
    /// Positions of the sigmoids and softmaxes in the graph.
    sources: BTreeMap<usize, Source>,
    /// Nodes that are not supported, by their position in the graph.
    unsupported: BTreeMap<usize, UnsupportedNode>,
}

impl Walk<'_> {
    fn run(mut self, graph: &mut GraphProto, plan: &Plan) -> Result<(Vec<Step>, Ending), ImportError> {
        // All operators are looked at before any is evaluated, so that a broken node cannot hide
        // unsupported ones behind it.
        for &index in &plan.order {
            let node = &graph.node[index];
            if !operators::is_supported(&node.domain, &node.op_type) {
                let hint = operators::hint(&node.domain, &node.op_type).map(str::to_owned);
                self.refuse(graph, index, hint);
            }
        }
        let source = |&index: &usize| match graph.node[index].op_type.as_str() {
            "Sigmoid" => Some((index, Source::Sigmoid)),
            "Softmax" => Some((index, Source::Softmax)),
            "LinearClassifier" | "TreeEnsembleClassifier" if plain(&graph.node[index]) => {
                Some((index, Source::Classifier))
            }
            _ => None,
        };
        self.sources = plan.order.iter().filter_map(source).collect();
        let walked = self.walk(graph, plan);
        if !self.unsupported.is_empty() {
            let nodes = self.unsupported.into_values().collect();
            return Err(ImportError::Unsupported(UnsupportedNodes { nodes }));
        }
        walked?;
        let output = self.value(graph, plan, &plan.output, "(the output)")?;
        let ending = self.ending(graph, plan, &output);
        let logits = match output {
            Value::Activation(logits) | Value::Scores { logits, .. } => logits,
            Value::Sigmoid { logit, complement, .. } => {
                let sign = if complement { -1.0 } else { 1.0 };
                logit.two_logits([0.0, sign], &mut self.builder, &mut self.budget)?
            }
            Value::Rows(rows) => {
                let reason = format!(
                    "output {} holds {} rows of scores for each sample; the model needs one, so reduce them or \
                     flatten them, and keep the batch as the first dimension",
                    quoted(&plan.output),
                    rows.shape[0]
                );
                return Err(ImportError::Output { reason });
            }
            other => {
                let reason = format!("output {} is {}, no scores", quoted(&plan.output), other.description());
                return Err(ImportError::Output { reason });
            }
        };
        Ok((self.builder.into_steps(&logits, &mut self.budget)?, ending))
    }

    /// What the outputs of the file are of the logits.
    fn ending(&self, graph: &GraphProto, plan: &Plan, output: &Value) -> Ending {
        let (source, classes) = match output {
            Value::Sigmoid { .. } => return Ending::SecondOfTwo,
            Value::Scores { source, logits } => (&graph.node[*source], logits.features()),
            _ => return Ending::Logits,
        };
        if plan.order.iter().any(|&index| graph.node[index].op_type == "Normalizer") {
            return Ending::Unknown;
        }
        match source.op_type.as_str() {
            "Softmax" => Ending::Softmax,
            "LogSoftmax" => Ending::LogSoftmax,
            // [1 - p, p] of one score is the softmax of 0 and the score.
            "Sigmoid" => match source.input.first().and_then(|name| self.values.get(name)) {
                Some(Value::Activation(score)) if score.features() == 1 => Ending::Softmax,
                _ => Ending::Sigmoid,
            },
            // Two classes can be one score in the file.
            "LinearClassifier" | "TreeEnsembleClassifier" if classes > 2 => {
                let transform = source.attribute.iter().find(|attribute| attribute.name == "post_transform");
                match transform.and_then(|attribute| attribute.s.as_deref()) {
                    None | Some(b"NONE") => Ending::Logits,
                    Some(b"SOFTMAX") => Ending::Softmax,
                    Some(b"LOGISTIC") => Ending::Sigmoid,
                    Some(_) => Ending::Unknown,
                }
            }
            _ => Ending::Unknown,
        }
    }

    fn walk(&mut self, graph: &mut GraphProto, plan: &Plan) -> Result<(), ImportError> {
        for &index in &plan.order {
            let name = node_name(&graph.node[index]);
            let names = graph.node[index].input.clone();
            let mut inputs = Vec::with_capacity(names.len());
            for input in &names {
                inputs.push(match input.as_str() {
                    "" => None,
                    input => Some(self.value(graph, plan, input, &name)?),
                });
            }
            let probabilities = inputs.iter().flatten().find_map(Value::source);
            let known = !inputs.iter().flatten().any(|value| matches!(value, Value::Unknown { .. }));
            let dependent = inputs.iter().flatten().filter(|value| value.depends_on_input()).count();
            let unknown = Value::Unknown { depends_on_input: dependent > 0 };
            let proto = &mut graph.node[index];
            // Of a node that is not supported, every output is unknown.
            let outputs = if proto.op_type == "Split" { proto.output.len() } else { 1 };
            let supported = operators::is_supported(&proto.domain, &proto.op_type);
            let values = if known && supported {
                let mut node = Node {
                    name: &name,
                    index,
                    proto,
                    inputs,
                    in_rows: false,
                    opset: self.opset,
                    batch: self.batch,
                    builder: &mut self.builder,
                    budget: &mut self.budget,
                };
                match evaluate(&mut node, &self.sources) {
                    Ok(values) => values,
                    Err(Failure::Import(error)) => return Err(error),
                    Err(Failure::Unsupported(hint)) => {
                        // After a softmax in the wrong place, the softmax is what has to go.
                        match probabilities.filter(|source| {
                            matches!(self.sources.get(source), None | Some(Source::Classifier))
                        }) {
                            Some(source) => self.refuse(graph, source, Some(ONLY_AT_THE_END.to_owned())),
                            None => self.refuse(graph, index, Some(hint)),
                        }
                        vec![unknown; outputs]
                    }
                }
            } else {
                // Whatever an unsupported node gives, these would still be refused.
                if supported && dependent > 1 && operators::is_division(&proto.op_type) {
                    self.refuse(graph, index, Some(DIVISOR_DEPENDS_ON_THE_INPUT.to_owned()));
                }
                vec![unknown; outputs]
            };
            let node = &graph.node[index];
            let names = node.output.iter().skip(operators::result(&node.domain, &node.op_type));
            self.values.extend(names.cloned().zip(values));
        }
        Ok(())
    }

    /// The value of a name, which the plan has found to have a provider.
    fn value(
        &mut self,
        graph: &mut GraphProto,
        plan: &Plan,
        name: &str,
        user: &str,
    ) -> Result<Value, ImportError> {
        if let Some(value) = self.values.get(name) {
            return Ok(value.clone());
        }
        let missing = || ImportError::MissingValue { node: quoted(user), value: quoted(name) };
        let value = match plan.providers.get(name).ok_or_else(missing)? {
            Provider::Input(_) => Value::Activation(self.input.clone()),
            Provider::Initialiser(index) => {
                tensor::decode(&mut graph.initializer[*index], name, &mut self.budget)?
            }
            Provider::Node { node, output }
                if *output == operators::result(&graph.node[*node].domain, &graph.node[*node].op_type) =>
            {
                let node = quoted(&node_name(&graph.node[*node]));
                return Err(ImportError::Cycle { node });
            }
            // Masks of Dropout, statistics of BatchNormalization, labels of classifiers.
            Provider::Node { node, .. } => {
                let hint = match operators::result(&graph.node[*node].domain, &graph.node[*node].op_type) {
                    0 => "only the first output is supported".to_owned(),
                    _ => "only the scores of a classifier are used, not its labels".to_owned(),
                };
                self.refuse(graph, *node, Some(hint));
                Value::Unknown { depends_on_input: true }
            }
        };
        self.values.insert(name.to_owned(), value.clone());
        Ok(value)
    }

    fn refuse(&mut self, graph: &GraphProto, index: usize, hint: Option<String>) {
        let node = &graph.node[index];
        let default = operators::is_default_domain(&node.domain);
        let opset = if default {
            Some(self.opset)
        } else {
            let import = self.opsets.iter().find(|import| import.domain == node.domain);
            import.map(|import| import.version)
        };
        self.unsupported.entry(index).or_insert_with(|| UnsupportedNode {
            node: escaped(&node_name(node)),
            operator: escaped(&node.op_type),
            domain: if default { "ai.onnx".to_owned() } else { escaped(&node.domain) },
            opset,
            hint,
        });
    }
}
