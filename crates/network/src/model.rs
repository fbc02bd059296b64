//! The network itself: dense affine layers with ReLU between them, in real numbers.

use ndarray::{Array1, Array2, ArrayView2, Axis};
use thiserror::Error;

use crate::{
    erase::erase,
    limits::{MAXIMUM_CLASSES, MAXIMUM_LAYERS, MAXIMUM_SIZE, MAXIMUM_WEIGHTS, MINIMUM_CLASSES},
};

/// One layer of a [`Network`].
///
/// There is no `Debug`: weights are their owner's secret.
pub enum Layer {
    /// Maps a row vector `x` to `x · weights + bias`.
    Affine {
        /// Shape `[inputs, outputs]`.
        weights: Array2<f64>,
        /// Shape `[outputs]`.
        bias: Array1<f64>,
    },
    /// Replaces every negative value by zero.
    Relu,
}

/// Where an imported network came from, for reports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Program that wrote the file, as the file says, control characters escaped.
    pub producer: String,
    /// Version of the default ONNX operator set.
    pub opset: i64,
    /// Operators that the answer depends on, with their number, in alphabetical order.
    pub operators: Vec<(String, usize)>,
}

/// A feed-forward classifier with finite weights, alternating affine and ReLU layers, the first
/// and the last of them affine.
///
/// The weights are overwritten with zero when the network is dropped. There is no `Debug` and no
/// `Clone`, so that no copy is made by accident.
pub struct Network {
    input_shape: Vec<usize>,
    layers: Vec<Layer>,
    classes: usize,
    origin: Option<Origin>,
}

/// Why a list of layers is not a [`Network`].
#[derive(Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum NetworkError {
    /// The input shape has no dimension, a zero, or too many features.
    #[error(
        "input shape {shape:?} must have at least one dimension, no zero, and at most \
         {MAXIMUM_SIZE} features in all"
    )]
    InputShape {
        /// Shape of one sample.
        shape: Vec<usize>,
    },
    /// There are no layers or too many.
    #[error("network has {layers} layers; it needs 1 to {MAXIMUM_LAYERS}")]
    LayerCount {
        /// Number of layers given.
        layers: usize,
    },
    /// An affine layer stands where a ReLU must stand, or the other way round.
    #[error(
        "layer {layer} is {found}; affine and ReLU layers must alternate, and the first and the \
         last must be affine"
    )]
    Order {
        /// Index of the layer.
        layer: usize,
        /// Kind of the layer.
        found: &'static str,
    },
    /// A layer does not take as many values as the one before gives.
    #[error("layer {layer} takes {found} values, but {expected} arrive")]
    Inputs {
        /// Index of the layer.
        layer: usize,
        /// Rows of its weights.
        found: usize,
        /// Outputs of the layer before, or input features.
        expected: usize,
    },
    /// Bias and weights of a layer do not fit together.
    #[error("layer {layer} has {outputs} outputs, but a bias of {bias} values")]
    Bias {
        /// Index of the layer.
        layer: usize,
        /// Columns of its weights.
        outputs: usize,
        /// Length of its bias.
        bias: usize,
    },
    /// A layer has no outputs or too many.
    #[error("layer {layer} has {size} outputs; the limit is 1 to {MAXIMUM_SIZE}")]
    Size {
        /// Index of the layer.
        layer: usize,
        /// Columns of its weights.
        size: usize,
    },
    /// The network is too large.
    #[error("network has more than {MAXIMUM_WEIGHTS} weights; use smaller hidden layers")]
    TooManyWeights,
    /// A weight or bias is NaN or infinite.
    #[error(
        "layer {layer} has a NaN or infinite {part} at index {index}; train the model again with \
         a smaller learning rate or check its normalisation"
    )]
    NotFinite {
        /// Index of the layer.
        layer: usize,
        /// "weight" or "bias".
        part: &'static str,
        /// Row-major index.
        index: usize,
    },
    /// The last layer does not give one logit a class.
    #[error(
        "network has {classes} outputs; a vote needs one logit for each of {MINIMUM_CLASSES} to \
         {MAXIMUM_CLASSES} classes. For a single score, end the model with a Sigmoid"
    )]
    Classes {
        /// Columns of the last weights.
        classes: usize,
    },
}

impl Network {
    /// Checks the layers and builds the network.
    ///
    /// `input_shape` is the shape of one sample without the batch dimension; samples are flattened
    /// to features in row-major order.
    ///
    /// # Errors
    /// Any violation of the limits of [`crate::limits`], of the order of layers, of sizes, or a
    /// weight that is not finite, as [`NetworkError`].
    pub fn new(input_shape: Vec<usize>, layers: Vec<Layer>) -> Result<Self, NetworkError> {
        // The layers move into the value first, so that they are erased on refusal as well.
        let mut network = Self { input_shape, layers, classes: 0, origin: None };
        network.classes = network.check()?;
        Ok(network)
    }

    fn check(&self) -> Result<usize, NetworkError> {
        let features = feature_count(&self.input_shape)
            .ok_or_else(|| NetworkError::InputShape { shape: self.input_shape.clone() })?;
        if self.layers.is_empty() || self.layers.len() > MAXIMUM_LAYERS {
            return Err(NetworkError::LayerCount { layers: self.layers.len() });
        }
        let mut size = features;
        let mut total = 0_usize;
        for (layer, content) in self.layers.iter().enumerate() {
            match content {
                Layer::Affine { weights, bias } => {
                    if layer % 2 == 1 {
                        return Err(NetworkError::Order { layer, found: "affine" });
                    }
                    let (inputs, outputs) = weights.dim();
                    if inputs != size {
                        return Err(NetworkError::Inputs { layer, found: inputs, expected: size });
                    }
                    if outputs == 0 || outputs > MAXIMUM_SIZE {
                        return Err(NetworkError::Size { layer, size: outputs });
                    }
                    if bias.len() != outputs {
                        return Err(NetworkError::Bias { layer, outputs, bias: bias.len() });
                    }
                    total = total.saturating_add(weights.len());
                    if total > MAXIMUM_WEIGHTS {
                        return Err(NetworkError::TooManyWeights);
                    }
                    let broken = |part, index| NetworkError::NotFinite { layer, part, index };
                    if let Some(index) = weights.iter().position(|value| !value.is_finite()) {
                        return Err(broken("weight", index));
                    }
                    if let Some(index) = bias.iter().position(|value| !value.is_finite()) {
                        return Err(broken("bias", index));
                    }
                    size = outputs;
                }
                Layer::Relu => {
                    if layer.is_multiple_of(2) || layer + 1 == self.layers.len() {
                        return Err(NetworkError::Order { layer, found: "ReLU" });
                    }
                }
            }
        }
        if !(MINIMUM_CLASSES..=MAXIMUM_CLASSES).contains(&size) {
            return Err(NetworkError::Classes { classes: size });
        }
        Ok(size)
    }

    /// Records where the network came from.
    pub(crate) fn with_origin(mut self, origin: Origin) -> Self {
        self.origin = Some(origin);
        self
    }

    /// Shape of one sample, without the batch dimension.
    #[must_use]
    pub fn input_shape(&self) -> &[usize] {
        &self.input_shape
    }

    /// Number of input features of one sample.
    #[must_use]
    pub fn input_features(&self) -> usize {
        self.input_shape.iter().product()
    }

    /// The layers in order: affine at even indices, ReLU at odd ones.
    #[must_use]
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Number of classes, which is the number of logits.
    #[must_use]
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// What the ONNX file said about itself, if the network was imported from one.
    #[must_use]
    pub fn origin(&self) -> Option<&Origin> {
        self.origin.as_ref()
    }

    /// Number of weights and biases.
    #[must_use]
    pub fn parameter_count(&self) -> usize {
        self.layers
            .iter()
            .map(|layer| match layer {
                Layer::Affine { weights, bias } => weights.len() + bias.len(),
                Layer::Relu => 0,
            })
            .sum()
    }

    /// Logits `[rows, classes]` of `inputs` `[rows, features]` in double precision.
    ///
    /// # Panics
    /// When `inputs` does not have [`Self::input_features`] columns.
    #[must_use]
    pub fn evaluate(&self, inputs: ArrayView2<'_, f64>) -> Array2<f64> {
        assert_eq!(inputs.ncols(), self.input_features(), "columns of the inputs");
        let mut values = inputs.to_owned();
        for layer in &self.layers {
            match layer {
                Layer::Affine { weights, bias } => values = values.dot(weights) + bias,
                Layer::Relu => values.mapv_inplace(|value| value.max(0.0)),
            }
        }
        values
    }

    /// Class of the largest logit for each row of `inputs`; a tie goes to the lower index.
    ///
    /// # Panics
    /// When `inputs` does not have [`Self::input_features`] columns.
    #[must_use]
    pub fn votes(&self, inputs: ArrayView2<'_, f64>) -> Array1<usize> {
        argmax(self.evaluate(inputs).view())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for layer in &mut self.layers {
            if let Layer::Affine { weights, bias } = layer {
                erase(weights);
                erase(bias);
            }
        }
    }
}

/// Index of the largest value of each row; a tie goes to the lower index.
///
/// Rows without columns give 0.
#[must_use]
pub fn argmax<T: PartialOrd>(rows: ArrayView2<'_, T>) -> Array1<usize> {
    rows.axis_iter(Axis(0))
        .map(|row| {
            let mut best = 0;
            for (index, value) in row.iter().enumerate() {
                if *value > row[best] {
                    best = index;
                }
            }
            best
        })
        .collect()
}

/// Number of features of a sample of this shape, or `None` when the shape is not acceptable.
pub(crate) fn feature_count(shape: &[usize]) -> Option<usize> {
    if shape.is_empty() {
        return None;
    }
    shape
        .iter()
        .try_fold(1_usize, |product, &dimension| product.checked_mul(dimension))
        .filter(|features| (1..=MAXIMUM_SIZE).contains(features))
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    fn affine(inputs: usize, outputs: usize) -> Layer {
        Layer::Affine { weights: Array2::from_elem((inputs, outputs), 0.5), bias: Array1::zeros(outputs) }
    }

    fn refusal(shape: Vec<usize>, layers: Vec<Layer>) -> NetworkError {
        Network::new(shape, layers).err().expect("the network must be refused")
    }

    #[test]
    fn evaluates_by_hand() {
        let network = Network::new(
            vec![2],
            vec![
                Layer::Affine { weights: array![[1.0, -1.0], [2.0, 0.5]], bias: array![0.0, -1.0] },
                Layer::Relu,
                Layer::Affine { weights: array![[1.0, 0.0], [1.0, 3.0]], bias: array![0.25, 0.0] },
            ],
        )
        .unwrap();
        // [1, 2] -> [5, -1] -> ReLU [5, 0] -> [5.25, 0]; [-1, 2] -> [3, 1] -> [4.25, 3].
        let logits = network.evaluate(array![[1.0, 2.0], [-1.0, 2.0]].view());
        assert_eq!(logits, array![[5.25, 0.0], [4.25, 3.0]]);
        assert_eq!(network.votes(array![[1.0, 2.0]].view()), array![0]);
        assert_eq!(network.parameter_count(), 12);
    }

    #[test]
    fn ties_go_to_the_lower_index() {
        assert_eq!(argmax(array![[1, 3, 3], [2, 2, 2], [0, 0, 1]].view()), array![1, 0, 2]);
    }

    #[test]
    fn refuses_wrong_structure() {
        assert!(matches!(refusal(vec![], vec![affine(1, 2)]), NetworkError::InputShape { .. }));
        assert!(matches!(refusal(vec![usize::MAX, 2], vec![affine(1, 2)]), NetworkError::InputShape { .. }));
        assert_eq!(refusal(vec![2], vec![]), NetworkError::LayerCount { layers: 0 });
        assert_eq!(
            refusal(vec![2], vec![affine(2, 2), affine(2, 2)]),
            NetworkError::Order { layer: 1, found: "affine" }
        );
        assert_eq!(
            refusal(vec![2], vec![affine(2, 2), Layer::Relu]),
            NetworkError::Order { layer: 1, found: "ReLU" }
        );
        assert_eq!(
            refusal(vec![3], vec![affine(2, 2)]),
            NetworkError::Inputs { layer: 0, found: 2, expected: 3 }
        );
        assert_eq!(refusal(vec![2], vec![affine(2, 1)]), NetworkError::Classes { classes: 1 });
        assert_eq!(refusal(vec![2], vec![affine(2, 65)]), NetworkError::Classes { classes: 65 });
    }

    #[test]
    fn refuses_infinite_weights_and_biases() {
        let layer =
            Layer::Affine { weights: array![[0.0, f64::INFINITY], [0.0, 0.0]], bias: Array1::zeros(2) };
        assert_eq!(
            refusal(vec![2], vec![layer]),
            NetworkError::NotFinite { layer: 0, part: "weight", index: 1 }
        );
        let layer = Layer::Affine { weights: Array2::zeros((2, 2)), bias: array![0.0, f64::NAN] };
        assert_eq!(
            refusal(vec![2], vec![layer]),
            NetworkError::NotFinite { layer: 0, part: "bias", index: 1 }
        );
    }
}
