//! Which nodes the answer depends on, and in which order they can be evaluated.

use std::collections::HashMap;

use super::{
    ImportError, MAXIMUM_RANK,
    error::{escaped, quoted},
    node::node_name,
};
use crate::{
    limits::{MAXIMUM_CLASSES, MINIMUM_CLASSES},
    model::{NetworkError, feature_count},
    onnx::{GraphProto, NodeProto, TensorShapeProto, ValueInfoProto, data_type},
};

/// Domain of the operators of classical machine learning.
pub(super) const MACHINE_LEARNING_DOMAIN: &str = "ai.onnx.ml";

/// Who provides a value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Provider {
    /// Output of a node.
    Node { node: usize, output: usize },
    /// Initialiser.
    Initialiser(usize),
    /// Input of the graph that is no initialiser.
    Input(usize),
}

/// The part of a graph that the scores of the classes depend on.
pub(super) struct Plan {
    pub(super) providers: HashMap<String, Provider>,
    /// Name of the scores.
    pub(super) output: String,
    /// Nodes in an order in which each comes after those that it uses.
    pub(super) order: Vec<usize>,
    /// The one input that is used.
    pub(super) input: usize,
}

/// Plans the evaluation of `graph`, whose scores are the output `chosen` if one is.
pub(super) fn plan(graph: &GraphProto, chosen: Option<&str>) -> Result<Plan, ImportError> {
    let providers = providers(graph)?;
    let output = scores(graph, &providers, chosen)?;
    let needed = needed(graph, &providers, &output)?;
    let order = order(graph, &providers, &needed.nodes)?;
    let input = match needed.inputs.as_slice() {
        [input] => *input,
        [] => {
            let reason = format!(
                "output {} does not depend on any input of the model; export the model again",
                quoted(&output)
            );
            return Err(ImportError::Input { reason });
        }
        several => {
            let reason = format!(
                "the scores depend on {} inputs of the model ({}); join the features to one input before \
                 export, and make whatever is no feature a constant",
                several.len(),
                names(several.iter().map(|&index| &graph.input[index]))
            );
            return Err(ImportError::Input { reason });
        }
    };
    Ok(Plan { providers, output, order, input })
}

fn names<'a>(values: impl Iterator<Item = &'a ValueInfoProto>) -> String {
    let mut names: Vec<String> = values.map(|value| quoted(&value.name)).collect();
    if names.len() > MAXIMUM_RANK {
        names.truncate(MAXIMUM_RANK);
        names.push("…".to_owned());
    }
    names.join(", ")
}

fn providers(graph: &GraphProto) -> Result<HashMap<String, Provider>, ImportError> {
    let mut providers = HashMap::new();
    let mut provide = |name: &str, provider| {
        // An output without a name is one that is left out.
        if !name.is_empty() && providers.insert(name.to_owned(), provider).is_some() {
            return Err(ImportError::DuplicateValue { value: quoted(name) });
        }
        Ok(())
    };
    for (index, tensor) in graph.initializer.iter().enumerate() {
        provide(&tensor.name, Provider::Initialiser(index))?;
    }
    for (node, proto) in graph.node.iter().enumerate() {
        for (output, name) in proto.output.iter().enumerate() {
            provide(name, Provider::Node { node, output })?;
        }
    }
    for (index, input) in graph.input.iter().enumerate() {
        // Files before IR version 4 list initialisers as inputs too.
        if !matches!(providers.get(&input.name), Some(Provider::Initialiser(_)))
            && providers.insert(input.name.clone(), Provider::Input(index)).is_some()
        {
            return Err(ImportError::DuplicateValue { value: quoted(&input.name) });
        }
    }
    Ok(providers)
}

/// Name of the output that holds the scores `[batch, classes]`.
fn scores(
    graph: &GraphProto,
    providers: &HashMap<String, Provider>,
    chosen: Option<&str>,
) -> Result<String, ImportError> {
    if let Some(chosen) = chosen
        && !graph.output.iter().any(|output| output.name == chosen)
    {
        let reason = format!(
            "the model has no output {}; choose one of {} with --output NAME",
            quoted(chosen),
            names(graph.output.iter())
        );
        return Err(ImportError::Output { reason });
    }
    let mut candidates: Vec<(&ValueInfoProto, String)> = Vec::new();
    for output in graph.output.iter().filter(|output| chosen.is_none_or(|chosen| output.name == chosen)) {
        let tensor = output.r#type.as_ref().and_then(|kind| kind.tensor_type.as_ref());
        let collection = output
            .r#type
            .as_ref()
            .is_some_and(|kind| kind.sequence_type.is_some() || kind.map_type.is_some());
        if collection {
            // scikit-learn's converter wraps the probabilities of the classes in a list of maps.
            candidates.extend(zip_map_input(graph, providers, &output.name).map(|name| (output, name)));
        } else if tensor.is_none_or(|tensor| tensor.elem_type == 0 || is_float(tensor.elem_type)) {
            candidates.push((output, output.name.clone()));
        }
    }
    if candidates.len() > 1 {
        let fitting: Vec<_> =
            candidates.iter().filter(|(output, _)| may_be_scores(output)).cloned().collect();
        if !fitting.is_empty() {
            candidates = fitting;
        }
    }
    match candidates.as_slice() {
        [(_, name)] => Ok(labelled(graph, providers, name).unwrap_or_else(|| name.clone())),
        [] => Err(ImportError::Output {
            reason: format!(
                "none of the outputs ({}) that could be chosen holds real numbers; the model needs an output of logits \
                 or probabilities [batch, classes], not only labels",
                names(graph.output.iter())
            ),
        }),
        several => Err(ImportError::Output {
            reason: format!(
                "{} outputs ({}) could be the scores of the classes; choose one with --output NAME, or \
                 export the model with one output of logits or probabilities [batch, classes]",
                several.len(),
                names(several.iter().map(|(output, _)| *output))
            ),
        }),
    }
}

/// The scores of a classifier whose labels are an output too, where its converter makes something else of them: of two
/// classes only one score, of support vector machines the decisions of all pairs mixed into numbers that order the
/// classes only nearly as the labels do.
fn labelled(graph: &GraphProto, providers: &HashMap<String, Provider>, scores: &str) -> Option<String> {
    let made_by = |name: &str| match providers.get(name) {
        Some(Provider::Node { node, output }) => Some((&graph.node[*node], *output)),
        _ => None,
    };
    let is =
        |node: &NodeProto, operator: &str| node.domain == MACHINE_LEARNING_DOMAIN && node.op_type == operator;
    graph.output.iter().find_map(|output| {
        let mut name = &output.name;
        for _ in 0..MAXIMUM_RANK {
            let (node, output) = made_by(name)?;
            let column = || {
                made_by(scores).is_some_and(|(last, _)| {
                    is(last, "ArrayFeatureExtractor") && last.input.first() == node.output.get(1)
                })
            };
            if output == 0 && (is(node, "SVMClassifier") || is(node, "LinearClassifier") && column()) {
                return node.output.get(1).filter(|name| !name.is_empty()).cloned();
            }
            if !matches!(node.op_type.as_str(), "Identity" | "Cast") {
                return None;
            }
            name = node.input.first()?;
        }
        None
    })
}

fn zip_map_input(graph: &GraphProto, providers: &HashMap<String, Provider>, output: &str) -> Option<String> {
    let Some(Provider::Node { node, .. }) = providers.get(output) else { return None };
    let node = &graph.node[*node];
    if node.op_type != "ZipMap" || node.domain != MACHINE_LEARNING_DOMAIN {
        return None;
    }
    node.input.first().cloned()
}

/// False when the declared shape cannot be `[batch, classes]`.
fn may_be_scores(output: &ValueInfoProto) -> bool {
    let shape = output
        .r#type
        .as_ref()
        .and_then(|kind| kind.tensor_type.as_ref())
        .and_then(|tensor| tensor.shape.as_ref());
    shape.is_none_or(|shape| {
        shape.dim.len() == 2
            && shape.dim[1].dim_value.is_none_or(|classes| {
                usize::try_from(classes)
                    .is_ok_and(|classes| (MINIMUM_CLASSES..=MAXIMUM_CLASSES).contains(&classes))
            })
    })
}

/// True for an element type of real numbers.
pub(super) fn is_float(element_type: i32) -> bool {
    matches!(element_type, data_type::FLOAT | data_type::DOUBLE | data_type::FLOAT16 | data_type::BFLOAT16)
}

struct Needed {
    /// For each node, whether the output depends on it.
    nodes: Vec<bool>,
    /// Inputs that the output depends on.
    inputs: Vec<usize>,
}

/// Walks from the output to everything it depends on.
fn needed(
    graph: &GraphProto,
    providers: &HashMap<String, Provider>,
    output: &str,
) -> Result<Needed, ImportError> {
    let mut needed = Needed { nodes: vec![false; graph.node.len()], inputs: Vec::new() };
    let mut pending: Vec<usize> = Vec::new();
    let mut visit = |name: &str, user: &str, pending: &mut Vec<usize>| match providers.get(name) {
        Some(Provider::Node { node, .. }) => {
            if !needed.nodes[*node] {
                needed.nodes[*node] = true;
                pending.push(*node);
            }
            Ok(())
        }
        Some(Provider::Input(input)) => {
            if !needed.inputs.contains(input) {
                needed.inputs.push(*input);
            }
            Ok(())
        }
        Some(Provider::Initialiser(_)) => Ok(()),
        None => Err(ImportError::MissingValue { node: user.to_owned(), value: quoted(name) }),
    };
    visit(output, "(the output)", &mut pending)?;
    while let Some(node) = pending.pop() {
        let proto = &graph.node[node];
        for name in proto.input.iter().filter(|name| !name.is_empty()) {
            visit(name, &quoted(&node_name(proto)), &mut pending)?;
        }
    }
    needed.inputs.sort_unstable();
    Ok(needed)
}

/// Order of the needed nodes in which each comes after those that it uses.
fn order(
    graph: &GraphProto,
    providers: &HashMap<String, Provider>,
    needed: &[bool],
) -> Result<Vec<usize>, ImportError> {
    let mut users: Vec<Vec<usize>> = vec![Vec::new(); graph.node.len()];
    let mut waiting = vec![0_usize; graph.node.len()];
    for (index, node) in graph.node.iter().enumerate().filter(|(index, _)| needed[*index]) {
        for name in &node.input {
            if let Some(Provider::Node { node: source, .. }) = providers.get(name) {
                users[*source].push(index);
                waiting[index] += 1;
            }
        }
    }
    let is_needed = |index: &usize| needed[*index];
    let mut order: Vec<usize> =
        (0..graph.node.len()).filter(is_needed).filter(|&index| waiting[index] == 0).collect();
    let mut next = 0;
    while next < order.len() {
        for &user in &users[order[next]] {
            waiting[user] -= 1;
            if waiting[user] == 0 {
                order.push(user);
            }
        }
        next += 1;
    }
    match (0..graph.node.len()).filter(is_needed).find(|&index| waiting[index] > 0) {
        Some(stuck) => Err(ImportError::Cycle { node: quoted(&node_name(&graph.node[stuck])) }),
        None => Ok(order),
    }
}

/// Shape of one sample and the size of the batch when it is fixed.
pub(super) fn input_shape(input: &ValueInfoProto) -> Result<(Vec<usize>, Option<usize>), ImportError> {
    let refuse =
        |reason: String| ImportError::Input { reason: format!("input {} {reason}", quoted(&input.name)) };
    let Some(tensor) = input.r#type.as_ref().and_then(|kind| kind.tensor_type.as_ref()) else {
        return Err(refuse("is no tensor; export the model with one float tensor as input".to_owned()));
    };
    if !is_float(tensor.elem_type) {
        return Err(refuse(format!(
            "has element type {}; export the model with a float input",
            tensor.elem_type
        )));
    }
    let remedy = "export the model with an input of shape [batch, features...] of which only the \
                  batch is free";
    let Some(TensorShapeProto { dim }) = tensor.shape.as_ref() else {
        return Err(refuse(format!("has no shape; {remedy}")));
    };
    if dim.len() < 2 || dim.len() > MAXIMUM_RANK {
        return Err(refuse(format!("has {} dimensions; {remedy}", dim.len())));
    }
    let mut shape = Vec::with_capacity(dim.len() - 1);
    for (position, dimension) in dim.iter().enumerate().skip(1) {
        match dimension.dim_value.map(usize::try_from) {
            Some(Ok(size)) if size > 0 => shape.push(size),
            Some(_) => {
                let size = dimension.dim_value.unwrap_or(0);
                return Err(refuse(format!("has size {size} in dimension {position}; {remedy}")));
            }
            None => {
                let name = dimension.dim_param.as_deref().map_or("unknown".to_owned(), escaped);
                return Err(refuse(format!("has no fixed size in dimension {position} ({name}); {remedy}")));
            }
        }
    }
    if feature_count(&shape).is_none() {
        return Err(NetworkError::InputShape { shape }.into());
    }
    // Some writers use 0 or a negative number for a free batch.
    let batch = dim[0].dim_value.and_then(|size| usize::try_from(size).ok()).filter(|&size| size > 0);
    Ok((shape, batch))
}
