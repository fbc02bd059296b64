//! The network itself: a program with real weights.

use ndarray::{Array1, Array2, ArrayView2, Axis};
use thiserror::Error;

use crate::{
    ending::Ending,
    limits::{MAXIMUM_CLASSES, MAXIMUM_SIZE, MINIMUM_CLASSES},
    program::{self, Operation, ProgramError, Weights, evaluate, level::Levels},
};

/// One step of a [`Network`].
///
/// There is no `Debug`: weights are their owner's secret.
pub struct Step {
    /// What its owner calls it: the name of a node in an ONNX file. Stays with the owner.
    pub name: String,
    /// The values it takes: 0 is the input, `i + 1` the result of step `i`.
    pub inputs: Vec<usize>,
    /// What it computes.
    pub operation: Operation,
    /// Its weights, if the operation has some.
    pub weights: Option<Weights<f64>>,
}

impl Step {
    /// A dense layer on value `input`: `weights` is `[inputs, outputs]`.
    #[must_use]
    pub fn dense(name: &str, input: usize, weights: Array2<f64>, bias: Array1<f64>) -> Self {
        let (inputs, outputs) = weights.dim();
        Self {
            name: name.to_owned(),
            inputs: vec![input],
            operation: Operation::Dense { inputs, outputs },
            weights: Some(Weights::dense(weights, bias)),
        }
    }

    /// A step without weights.
    #[must_use]
    pub fn plain(name: &str, inputs: Vec<usize>, operation: Operation) -> Self {
        Self { name: name.to_owned(), inputs, operation, weights: None }
    }
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
    /// What the file's outputs are of the logits.
    pub ending: Ending,
}

/// A classifier with finite weights, whose last value holds one logit for each class.
///
/// The weights are overwritten with zero when the network is dropped. There is no `Debug` and no
/// `Clone`, so that no copy is made by accident.
pub struct Network {
    input_shape: Vec<usize>,
    steps: Vec<Step>,
    classes: usize,
    origin: Option<Origin>,
}

/// A step in an error: its index, and its name when it has one.
pub(crate) fn label(step: usize, name: &str) -> String {
    if name.is_empty() { format!("step {step}") } else { format!("step {step} ({name})") }
}

/// Why a list of steps is not a [`Network`].
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
    /// The steps do not fit together or are too large.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// Weights or biases have another shape than the operation says.
    #[error("{}: the {part} have shape {found:?}, the operation takes {expected:?}", label(*.step, .name))]
    Weights {
        /// Index of the step.
        step: usize,
        /// Its name.
        name: String,
        /// "weights" or "biases".
        part: &'static str,
        /// Shape given; empty when there are none.
        found: Vec<usize>,
        /// Shape that fits; empty when there must be none.
        expected: Vec<usize>,
    },
    /// A weight or bias is NaN or infinite.
    #[error(
        "{} has a NaN or infinite {part} at index {index}; train the model again with \
         a smaller learning rate or check its normalisation", label(*.step, .name)
    )]
    NotFinite {
        /// Index of the step.
        step: usize,
        /// Its name.
        name: String,
        /// "weight" or "bias".
        part: &'static str,
        /// Row-major index.
        index: usize,
    },
    /// The last value does not give one logit a class.
    #[error(
        "network has {classes} outputs; a vote needs one logit for each of {MINIMUM_CLASSES} to \
         {MAXIMUM_CLASSES} classes. For a single score, end the model with a Sigmoid"
    )]
    Classes {
        /// Numbers of the last value.
        classes: usize,
    },
}

impl Network {
    /// Checks the steps and builds the network.
    ///
    /// `input_shape` is the shape of one sample without the batch dimension; samples are flattened
    /// to features in row-major order.
    ///
    /// # Errors
    /// Any violation of the limits of [`crate::limits`], steps that do not fit together, or a
    /// weight that is not finite, as [`NetworkError`].
    pub fn new(input_shape: Vec<usize>, steps: Vec<Step>) -> Result<Self, NetworkError> {
        let features = feature_count(&input_shape)
            .ok_or_else(|| NetworkError::InputShape { shape: input_shape.clone() })?;
        let structure = steps.iter().map(|step| (step.inputs.as_slice(), &step.operation));
        let sizes = program::check(features, structure)?;
        steps.iter().enumerate().try_for_each(|(index, step)| check_weights(index, step))?;
        let classes = sizes.last().copied().unwrap_or(0);
        if !(MINIMUM_CLASSES..=MAXIMUM_CLASSES).contains(&classes) {
            return Err(NetworkError::Classes { classes });
        }
        Ok(Self { input_shape, steps, classes, origin: None })
    }

    /// A multilayer perceptron: dense layers, weights `[inputs, outputs]` and bias, with ReLU between
    /// them.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn perceptron(
        input_shape: Vec<usize>,
        layers: Vec<(Array2<f64>, Array1<f64>)>,
    ) -> Result<Self, NetworkError> {
        let mut steps: Vec<Step> = Vec::new();
        for (weights, bias) in layers {
            if !steps.is_empty() {
                steps.push(Step::plain("", vec![steps.len()], Operation::Relu));
            }
            steps.push(Step::dense("", steps.len(), weights, bias));
        }
        Self::new(input_shape, steps)
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

    /// The steps in order; the last one gives the logits.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.steps
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
        self.steps.iter().map(|step| step.operation.parameters()).sum()
    }

    /// Rescalings or comparisons that wait for each other, a comparison after a rescaling not counted.
    #[must_use]
    pub fn depth(&self) -> usize {
        let structure = self.steps.iter().map(|step| (step.inputs.as_slice(), &step.operation));
        Levels::of(structure).into_iter().max().unwrap_or(0).div_ceil(2)
    }

    /// Logits `[rows, classes]` of `inputs` `[rows, features]` in double precision.
    ///
    /// # Panics
    /// When `inputs` does not have [`Self::input_features`] columns.
    #[must_use]
    pub fn evaluate(&self, inputs: ArrayView2<'_, f64>) -> Array2<f64> {
        self.run(inputs, |_, _| {})
    }

    /// The result of every step in double precision, each `[rows, size]`.
    ///
    /// # Panics
    /// When `inputs` does not have [`Self::input_features`] columns.
    #[must_use]
    pub fn trace(&self, inputs: ArrayView2<'_, f64>) -> Vec<Array2<f64>> {
        let mut steps = Vec::with_capacity(self.steps.len());
        let _logits = self.run(inputs, |_, values| steps.push(values.clone()));
        steps
    }

    fn run(&self, inputs: ArrayView2<'_, f64>, observe: impl FnMut(usize, &Array2<f64>)) -> Array2<f64> {
        assert_eq!(inputs.ncols(), self.input_features(), "columns of the inputs");
        let taken: Vec<&[usize]> = self.steps.iter().map(|step| step.inputs.as_slice()).collect();
        let apply = |index: usize, values: &[ArrayView2<'_, f64>]| {
            let step: &Step = &self.steps[index];
            evaluate::exact(&step.operation, step.weights.as_ref(), values, 0)
        };
        evaluate::run(&taken, inputs, apply, observe)
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

/// Weights of the shape that the operation says, all of them finite.
fn check_weights(index: usize, step: &Step) -> Result<(), NetworkError> {
    let name = || step.name.clone();
    let mismatch = |part, found: &[usize], expected: &[usize]| {
        if found == expected {
            return Ok(());
        }
        let (found, expected) = (found.to_vec(), expected.to_vec());
        Err(NetworkError::Weights { step: index, name: name(), part, found, expected })
    };
    let shape = step.operation.weights();
    let found = step.weights.as_ref().map_or(&[][..], |weights| weights.matrices.shape());
    mismatch("weights", found, shape.as_ref().map_or(&[], |(matrices, _)| &matrices[..]))?;
    let (Some((_, biases)), Some(weights)) = (shape, &step.weights) else { return Ok(()) };
    mismatch("biases", weights.bias.shape(), &[biases])?;
    let not_finite =
        |part, index_of| NetworkError::NotFinite { step: index, name: name(), part, index: index_of };
    if let Some(place) = weights.matrices.iter().position(|value| !value.is_finite()) {
        return Err(not_finite("weight", place));
    }
    if let Some(place) = weights.bias.iter().position(|value| !value.is_finite()) {
        return Err(not_finite("bias", place));
    }
    Ok(())
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

    fn dense(input: usize, inputs: usize, outputs: usize) -> Step {
        Step::dense("fc", input, Array2::from_elem((inputs, outputs), 0.5), Array1::zeros(outputs))
    }

    fn refusal(shape: Vec<usize>, steps: Vec<Step>) -> NetworkError {
        Network::new(shape, steps).err().expect("the network must be refused")
    }

    #[test]
    fn evaluates_by_hand() {
        let network = Network::perceptron(
            vec![2],
            vec![
                (array![[1.0, -1.0], [2.0, 0.5]], array![0.0, -1.0]),
                (array![[1.0, 0.0], [1.0, 3.0]], array![0.25, 0.0]),
            ],
        )
        .unwrap();
        // [1, 2] -> [5, -1] -> ReLU [5, 0] -> [5.25, 0]; [-1, 2] -> [3, 1] -> [4.25, 3].
        let logits = network.evaluate(array![[1.0, 2.0], [-1.0, 2.0]].view());
        assert_eq!(logits, array![[5.25, 0.0], [4.25, 3.0]]);
        assert_eq!(network.votes(array![[1.0, 2.0]].view()), array![0]);
        assert_eq!((network.parameter_count(), network.depth()), (12, 2));
    }

    #[test]
    fn ties_go_to_the_lower_index() {
        assert_eq!(argmax(array![[1, 3, 3], [2, 2, 2], [0, 0, 1]].view()), array![1, 0, 2]);
    }

    #[test]
    fn refuses_wrong_structure() {
        assert!(matches!(refusal(vec![], vec![dense(0, 1, 2)]), NetworkError::InputShape { .. }));
        assert!(matches!(
            refusal(vec![usize::MAX, 2], vec![dense(0, 1, 2)]),
            NetworkError::InputShape { .. }
        ));
        let program = |error| NetworkError::Program(error);
        assert_eq!(refusal(vec![2], vec![]), program(ProgramError::StepCount { found: 0 }));
        assert_eq!(
            refusal(vec![2], vec![dense(0, 2, 2), dense(2, 2, 2)]),
            program(ProgramError::Value { step: 1, found: 2 })
        );
        assert_eq!(
            refusal(vec![3], vec![dense(0, 2, 2)]),
            program(ProgramError::Inputs { step: 0, found: 2, expected: 3 })
        );
        let twice = Step::plain("", vec![0, 0], Operation::Relu);
        assert!(matches!(
            refusal(vec![2], vec![twice]),
            NetworkError::Program(ProgramError::InputCount { step: 0, found: 2, expected: 1, .. })
        ));
        assert_eq!(refusal(vec![2], vec![dense(0, 2, 1)]), NetworkError::Classes { classes: 1 });
        assert_eq!(refusal(vec![2], vec![dense(0, 2, 65)]), NetworkError::Classes { classes: 65 });
        let mut bare = dense(0, 2, 2);
        bare.weights = None;
        assert!(refusal(vec![2], vec![bare]).to_string().contains("step 0 (fc): the weights have shape []"));
        let mut short = dense(0, 2, 2);
        short.weights = Some(Weights::dense(Array2::zeros((2, 2)), Array1::zeros(1)));
        assert!(refusal(vec![2], vec![short]).to_string().contains("the biases have shape [1]"));
        let mut weighed = Step::plain("", vec![0], Operation::Relu);
        weighed.weights = dense(0, 2, 2).weights.take();
        assert!(matches!(refusal(vec![2], vec![weighed]), NetworkError::Weights { part: "weights", .. }));
    }

    #[test]
    fn refuses_infinite_weights_and_biases() {
        let step = Step::dense("fc", 0, array![[0.0, f64::INFINITY], [0.0, 0.0]], Array1::zeros(2));
        let error = refusal(vec![2], vec![step]);
        assert!(
            matches!(error, NetworkError::NotFinite { step: 0, part: "weight", index: 1, .. }),
            "{error}"
        );
        let step = Step::dense("fc", 0, Array2::zeros((2, 2)), array![0.0, f64::NAN]);
        let error = refusal(vec![2], vec![step]);
        assert!(matches!(error, NetworkError::NotFinite { step: 0, part: "bias", index: 1, .. }), "{error}");
    }
}
