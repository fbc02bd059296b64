//! The part of a file that the scores depend on, as a file of its own.
//!
//! For an evaluator that trusts its file: it gets no node, initialiser or other file that import has not
//! looked at.

use std::{collections::HashSet, path::Path};

use prost::Message as _;
use zeroize::{Zeroize as _, Zeroizing};

use super::{ErasedOnDrop, ImportError, ImportOptions, graph, graph::Plan, open, read};
use crate::onnx::{GraphProto, ModelProto};

/// A model without what its scores do not depend on.
pub struct Extract {
    /// The ONNX file, with all weights in it. Secret.
    pub bytes: Zeroizing<Vec<u8>>,
    /// Shape of one sample.
    pub sample_shape: Vec<usize>,
    /// The number of samples that the file takes at a time, if it is fixed.
    pub batch: Option<usize>,
}

/// Takes the nodes and initialisers that the scores of the model in `path` depend on, with weights that
/// are kept in files beside it, into one file with one input and one output.
///
/// # Errors
/// As [`import_file_with`](super::import_file_with) for a file that cannot be read; operators are not looked at.
pub fn extract_file(path: impl AsRef<Path>, options: &ImportOptions) -> Result<Extract, ImportError> {
    let (bytes, folder) = read(path.as_ref())?;
    let (mut model, _) = open(&bytes, folder.as_deref())?;
    let graph = model.0.graph.as_ref().expect("a model that is opened has a graph");
    let plan = graph::plan(graph, options.output.as_deref())?;
    let (sample_shape, batch) = graph::input_shape(&graph.input[plan.input])?;
    let bytes = encode(&part(&mut model, &plan));
    Ok(Extract { bytes, sample_shape, batch })
}

/// Moves what `plan` names out of a model, the nodes in their order.
fn part(model: &mut ErasedOnDrop, plan: &Plan) -> ErasedOnDrop {
    let ModelProto { ir_version, producer_name, producer_version, graph, opset_import } = &mut model.0;
    let graph = graph.as_mut().expect("a model that is opened has a graph");
    let node: Vec<_> = plan.order.iter().map(|&index| std::mem::take(&mut graph.node[index])).collect();
    let used: HashSet<&str> = node.iter().flat_map(|node| &node.input).map(String::as_str).collect();
    let initializer = graph.initializer.iter_mut().filter(|tensor| used.contains(tensor.name.as_str()));
    let initializer = initializer.map(std::mem::take).collect();
    let declared = graph.output.iter_mut().find(|output| output.name == plan.output);
    let mut output = declared.map(std::mem::take).unwrap_or_default();
    output.name.clone_from(&plan.output);
    let input = vec![std::mem::take(&mut graph.input[plan.input])];
    let name = std::mem::take(&mut graph.name);
    let graph = Some(GraphProto { node, name, initializer, input, output: vec![output] });
    ErasedOnDrop(ModelProto {
        ir_version: *ir_version,
        producer_name: std::mem::take(producer_name),
        producer_version: std::mem::take(producer_version),
        graph,
        opset_import: std::mem::take(opset_import),
    })
}

fn encode(model: &ErasedOnDrop) -> Zeroizing<Vec<u8>> {
    let model: &ModelProto = &model.0;
    // Sized at once: growing would leave copies of weights behind.
    let mut bytes = Vec::with_capacity(model.encoded_len());
    if model.encode(&mut bytes).is_err() {
        bytes.zeroize();
        unreachable!("there is room for all of it");
    }
    Zeroizing::new(bytes)
}
