//! One node with its inputs and parameters, as the operators see it.

use super::{
    ImportError,
    budget::Budget,
    builder::Builder,
    error::{escaped, quoted},
    tensor,
    value::{Failure, Integer, Value, unsupported},
};
use crate::onnx::{AttributeProto, NodeProto, TensorProto};

/// A node while it is evaluated.
pub(super) struct Node<'a> {
    /// Name for errors.
    pub(super) name: &'a str,
    /// Position in the graph.
    pub(super) index: usize,
    /// The node as read.
    pub(super) proto: &'a mut NodeProto,
    /// Values of the inputs; `None` for one that is left out.
    pub(super) inputs: Vec<Option<Value>>,
    /// True when the first dimension of a sample stood for the rows of all samples.
    pub(super) in_rows: bool,
    /// Version of the default operator set.
    pub(super) opset: i64,
    /// Size of the batch when the model fixes it.
    pub(super) batch: Option<usize>,
    pub(super) builder: &'a mut Builder,
    pub(super) budget: &'a mut Budget,
}

/// Name of a node for errors: its own, or that of what it computes.
pub(super) fn node_name(node: &NodeProto) -> String {
    if !node.name.is_empty() {
        return node.name.clone();
    }
    match node.output.first() {
        Some(output) => format!("without name, output {output}"),
        None => "without name".to_owned(),
    }
}

impl Node<'_> {
    /// Value of input `index`, when the node has it.
    pub(super) fn optional(&self, index: usize) -> Option<Value> {
        self.inputs.get(index).cloned().flatten()
    }

    /// Value of input `index`.
    pub(super) fn input(&self, index: usize) -> Result<Value, ImportError> {
        self.optional(index).ok_or_else(|| self.broken(format!("input {index} is missing")))
    }

    /// Input `index` as a list of known integers.
    pub(super) fn integers(&self, index: usize) -> Result<Vec<i64>, Failure> {
        match self.input(index)? {
            Value::Integer(array) if array.ndim() <= 1 => array
                .iter()
                .map(|element| match element {
                    Integer::Known(value) => Ok(*value),
                    Integer::Batch => unsupported("a parameter depends on the batch size"),
                })
                .collect(),
            Value::Integer(_) => {
                Err(self.broken(format!("input {index} has more than one dimension")).into())
            }
            _ => unsupported(format!("input {index} must be constant integers")),
        }
    }

    fn attribute(&self, name: &str) -> Option<&AttributeProto> {
        self.proto.attribute.iter().find(|attribute| attribute.name == name)
    }

    /// Integer parameter `name`, or `default` when it is not given.
    pub(super) fn integer_attribute(&self, name: &str, default: i64) -> i64 {
        // The default of a protobuf integer may be left out on the wire.
        self.attribute(name).map_or(default, |attribute| attribute.i.unwrap_or(0))
    }

    /// Number parameter `name`, or `default` when it is not given.
    pub(super) fn float_attribute(&self, name: &str, default: f32) -> Result<f64, ImportError> {
        let value = self.attribute(name).map_or(default, |attribute| attribute.f.unwrap_or(0.0));
        if value.is_finite() { Ok(f64::from(value)) } else { Err(self.broken(format!("{name} is {value}"))) }
    }

    /// Number parameter `name`, when it is given; it may be infinite.
    pub(super) fn optional_float_attribute(&self, name: &str) -> Option<f64> {
        self.attribute(name).map(|attribute| f64::from(attribute.f.unwrap_or(0.0)))
    }

    /// Text parameter `name`; empty when it is not given or no text.
    pub(super) fn text_attribute(&self, name: &str) -> String {
        let bytes = self.attribute(name).and_then(|attribute| attribute.s.clone()).unwrap_or_default();
        escaped(&String::from_utf8(bytes).unwrap_or_default())
    }

    /// List of numbers `name`; empty when it is not given.
    pub(super) fn floats_attribute(&self, name: &str) -> Result<Vec<f64>, ImportError> {
        let given = self.attribute(name).map_or(&[][..], |attribute| &attribute.floats);
        match given.iter().position(|value| !value.is_finite()) {
            Some(index) => Err(self.broken(format!("{name} is {} at index {index}", given[index]))),
            None => Ok(given.iter().copied().map(f64::from).collect()),
        }
    }

    /// List of texts `name`; empty when it is not given.
    pub(super) fn texts_attribute(&self, name: &str) -> Vec<String> {
        let given = self.attribute(name).map_or(&[][..], |attribute| &attribute.strings);
        given.iter().map(|text| escaped(&String::from_utf8_lossy(text))).collect()
    }

    /// List of integers `name`, when it is given.
    pub(super) fn integers_attribute(&self, name: &str) -> Option<Vec<i64>> {
        self.attribute(name).map(|attribute| attribute.ints.clone())
    }

    /// The value of a `Constant` node.
    pub(super) fn constant(&mut self) -> Result<Value, Failure> {
        let budget = &mut *self.budget;
        for attribute in &mut self.proto.attribute {
            let mut described = TensorProto { dims: Vec::new(), ..TensorProto::default() };
            let tensor = match attribute.name.as_str() {
                "value" => match &mut attribute.t {
                    Some(tensor) => tensor,
                    None => continue,
                },
                "value_float" => {
                    described.data_type = crate::onnx::data_type::FLOAT;
                    described.float_data = vec![attribute.f.unwrap_or(0.0)];
                    &mut described
                }
                "value_floats" => {
                    described.data_type = crate::onnx::data_type::FLOAT;
                    described.float_data = std::mem::take(&mut attribute.floats);
                    described.dims = vec![described.float_data.len() as i64];
                    &mut described
                }
                "value_int" => {
                    described.data_type = crate::onnx::data_type::INT64;
                    described.int64_data = vec![attribute.i.unwrap_or(0)];
                    &mut described
                }
                "value_ints" => {
                    described.data_type = crate::onnx::data_type::INT64;
                    described.int64_data = std::mem::take(&mut attribute.ints);
                    described.dims = vec![described.int64_data.len() as i64];
                    &mut described
                }
                _ => continue,
            };
            return Ok(tensor::decode(tensor, self.name, budget)?);
        }
        unsupported("only constants of numbers are read")
    }

    /// An error about the node itself.
    pub(super) fn broken(&self, reason: impl Into<String>) -> ImportError {
        ImportError::Node { node: quoted(self.name), reason: reason.into() }
    }
}
