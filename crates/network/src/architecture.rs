//! The public part of a fixed-point network.
//!
//! Servers receive an [`Architecture`] from an owner whom they do not trust to be careful, so every
//! use begins with [`Architecture::validate`].

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::limits::{
    MAXIMUM_BOUND_BITS, MAXIMUM_CLASSES, MAXIMUM_FRACTIONAL_BITS, MAXIMUM_LAYERS, MAXIMUM_SIZE,
    MAXIMUM_WEIGHTS, MAXIMUM_WIDTH, MINIMUM_CLASSES, MINIMUM_FRACTIONAL_BITS, MINIMUM_WIDTH,
};

/// Shape of one layer, without its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum LayerShape {
    /// Weights `[inputs, outputs]` and a bias of `outputs` values.
    Affine {
        /// Values that arrive.
        inputs: usize,
        /// Values that leave.
        outputs: usize,
        /// `l` with |z| < 2^l before truncation.
        bound_bits: u32,
    },
    /// Replaces negative values by zero.
    Relu {
        /// Number of values.
        size: usize,
        /// Comparison window `k` with |x| < 2^(k - 1).
        width: u32,
    },
}

/// Sizes, ranges and comparison windows of a fixed-point network: what the servers need to know to
/// evaluate it, and all that they learn of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Architecture {
    /// Number of input features.
    pub input_features: usize,
    /// Number of classes.
    pub classes: usize,
    /// Fractional bits f of inputs, activations and logits.
    pub fractional_bits: u32,
    /// Layers in order: affine at even indices, ReLU at odd ones.
    pub layers: Vec<LayerShape>,
    /// Comparison window for the difference of two logits.
    pub final_width: u32,
}

/// Why an architecture was refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ArchitectureError {
    /// A number is outside its limits.
    #[error("{name} is {found}; the limit is {minimum} to {maximum}")]
    Limit {
        /// What the number is.
        name: &'static str,
        /// The number given.
        found: usize,
        /// Smallest value allowed.
        minimum: usize,
        /// Largest value allowed.
        maximum: usize,
    },
    /// A number of one layer is outside its limits.
    #[error("layer {layer}: {name} is {found}; the limit is {minimum} to {maximum}")]
    LayerLimit {
        /// Index of the layer.
        layer: usize,
        /// What the number is.
        name: &'static str,
        /// The number given.
        found: usize,
        /// Smallest value allowed.
        minimum: usize,
        /// Largest value allowed.
        maximum: usize,
    },
    /// A layer of the wrong kind.
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
    /// A layer does not take as many values as arrive.
    #[error("layer {layer} takes {found} values, but {expected} arrive")]
    Inputs {
        /// Index of the layer.
        layer: usize,
        /// Values it takes.
        found: usize,
        /// Values that arrive.
        expected: usize,
    },
    /// The last layer does not give one logit a class.
    #[error("the last layer gives {found} values for {classes} classes")]
    Classes {
        /// Outputs of the last layer.
        found: usize,
        /// Number of classes.
        classes: usize,
    },
    /// The layers have too many weights in all.
    #[error("the layers have more than {MAXIMUM_WEIGHTS} weights; use smaller hidden layers")]
    TooManyWeights,
}

impl Architecture {
    /// Checks everything that a hostile sender could have made up.
    ///
    /// After this the layers fit together, and memory for all of the weights is within
    /// [`MAXIMUM_WEIGHTS`].
    ///
    /// # Errors
    /// [`ArchitectureError`] naming the layer, the number and its limit.
    pub fn validate(&self) -> Result<(), ArchitectureError> {
        let limit = |name, found: usize, minimum: usize, maximum: usize| {
            if (minimum..=maximum).contains(&found) {
                Ok(())
            } else {
                Err(ArchitectureError::Limit { name, found, minimum, maximum })
            }
        };
        let fractional_bits = self.fractional_bits as usize;
        limit("number of input features", self.input_features, 1, MAXIMUM_SIZE)?;
        limit("number of classes", self.classes, MINIMUM_CLASSES, MAXIMUM_CLASSES)?;
        limit(
            "number of fractional bits",
            fractional_bits,
            MINIMUM_FRACTIONAL_BITS as usize,
            MAXIMUM_FRACTIONAL_BITS as usize,
        )?;
        limit("number of layers", self.layers.len(), 1, MAXIMUM_LAYERS)?;
        limit(
            "final comparison window",
            self.final_width as usize,
            MINIMUM_WIDTH as usize,
            MAXIMUM_WIDTH as usize,
        )?;
        let mut size = self.input_features;
        let mut weights = 0_usize;
        for (layer, shape) in self.layers.iter().enumerate() {
            size = self.validate_layer(layer, shape, size)?;
            if let LayerShape::Affine { inputs, outputs, .. } = shape {
                // Both are at most MAXIMUM_SIZE here, so neither operation overflows.
                weights += inputs * outputs;
                if weights > MAXIMUM_WEIGHTS {
                    return Err(ArchitectureError::TooManyWeights);
                }
            }
        }
        if size != self.classes {
            return Err(ArchitectureError::Classes { found: size, classes: self.classes });
        }
        Ok(())
    }

    /// Checks one layer that `size` values arrive at and gives the number that leave it.
    fn validate_layer(
        &self,
        layer: usize,
        shape: &LayerShape,
        size: usize,
    ) -> Result<usize, ArchitectureError> {
        let limit = |name, found: usize, minimum: usize, maximum: usize| {
            if (minimum..=maximum).contains(&found) {
                Ok(())
            } else {
                Err(ArchitectureError::LayerLimit { layer, name, found, minimum, maximum })
            }
        };
        let arrive = |found: usize| {
            if found == size {
                Ok(())
            } else {
                Err(ArchitectureError::Inputs { layer, found, expected: size })
            }
        };
        match *shape {
            LayerShape::Affine { inputs, outputs, bound_bits } => {
                if layer % 2 == 1 {
                    return Err(ArchitectureError::Order { layer, found: "affine" });
                }
                arrive(inputs)?;
                limit("number of outputs", outputs, 1, MAXIMUM_SIZE)?;
                limit(
                    "bound in bits",
                    bound_bits as usize,
                    self.fractional_bits as usize,
                    MAXIMUM_BOUND_BITS as usize,
                )?;
                Ok(outputs)
            }
            LayerShape::Relu { size: found, width } => {
                if layer.is_multiple_of(2) || layer + 1 == self.layers.len() {
                    return Err(ArchitectureError::Order { layer, found: "ReLU" });
                }
                arrive(found)?;
                limit("comparison window", width as usize, MINIMUM_WIDTH as usize, MAXIMUM_WIDTH as usize)?;
                Ok(size)
            }
        }
    }

    /// Number of weights and biases of a valid architecture.
    #[must_use]
    pub fn parameter_count(&self) -> usize {
        self.layers
            .iter()
            .map(|shape| match *shape {
                LayerShape::Affine { inputs, outputs, .. } => {
                    inputs.saturating_mul(outputs).saturating_add(outputs)
                }
                LayerShape::Relu { .. } => 0,
            })
            .fold(0, usize::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn valid() -> Architecture {
        Architecture {
            input_features: 4,
            classes: 3,
            fractional_bits: 12,
            layers: vec![
                LayerShape::Affine { inputs: 4, outputs: 8, bound_bits: 30 },
                LayerShape::Relu { size: 8, width: 20 },
                LayerShape::Affine { inputs: 8, outputs: 3, bound_bits: 32 },
            ],
            final_width: 24,
        }
    }

    fn refused(change: impl FnOnce(&mut Architecture)) -> String {
        let mut architecture = valid();
        change(&mut architecture);
        architecture.validate().expect_err("the architecture must be refused").to_string()
    }

    #[test]
    fn accepts_and_counts_a_valid_one() {
        assert_eq!(valid().validate(), Ok(()));
        assert_eq!(valid().parameter_count(), 4 * 8 + 8 + 8 * 3 + 3);
        let text = serde_json::to_string(&valid()).unwrap();
        assert_eq!(serde_json::from_str::<Architecture>(&text).unwrap(), valid());
        assert!(text.contains(r#"{"kind":"relu","size":8,"width":20}"#), "{text}");
    }

    #[test]
    fn refuses_what_a_hostile_sender_could_write() {
        assert!(refused(|a| a.input_features = 0).contains("input features is 0"));
        assert!(refused(|a| a.input_features = usize::MAX).contains("input features"));
        assert!(refused(|a| a.classes = 65).contains("classes is 65; the limit is 2 to 64"));
        assert!(refused(|a| a.classes = 4).contains("gives 3 values for 4 classes"));
        assert!(refused(|a| a.fractional_bits = 63).contains("fractional bits is 63"));
        assert!(refused(|a| a.final_width = 41).contains("window is 41"));
        assert!(refused(|a| a.layers.clear()).contains("layers is 0"));
        assert!(refused(|a| a.layers = vec![a.layers[1]; 65]).contains("layers is 65"));
        assert!(refused(|a| a.layers.truncate(2)).contains("layer 1 is ReLU"));
        assert!(refused(|a| a.layers.swap(0, 1)).contains("layer 0 is ReLU"));
        assert!(refused(|a| a.layers[1] = a.layers[0]).contains("layer 1 is affine"));
        assert!(
            refused(|a| a.layers[1] = LayerShape::Relu { size: 7, width: 20 })
                .contains("layer 1 takes 7 values, but 8 arrive")
        );
        assert!(
            refused(|a| a.layers[1] = LayerShape::Relu { size: 8, width: 1 })
                .contains("comparison window is 1")
        );
        assert!(
            refused(|a| a.layers[0] = LayerShape::Affine { inputs: 4, outputs: 8, bound_bits: 40 })
                .contains("bound in bits is 40; the limit is 12 to 39")
        );
        assert!(
            refused(|a| a.layers[0] = LayerShape::Affine { inputs: 4, outputs: usize::MAX, bound_bits: 30 })
                .contains("layer 0: number of outputs")
        );
    }

    #[test]
    fn refuses_more_weights_than_memory_is_meant_for() {
        let message = refused(|a| {
            a.input_features = MAXIMUM_SIZE;
            a.layers = vec![
                LayerShape::Affine { inputs: MAXIMUM_SIZE, outputs: MAXIMUM_SIZE, bound_bits: 30 },
                LayerShape::Relu { size: MAXIMUM_SIZE, width: 20 },
                LayerShape::Affine { inputs: MAXIMUM_SIZE, outputs: 3, bound_bits: 30 },
            ];
        });
        assert!(message.contains("more than 67108864 weights"), "{message}");
    }
}
