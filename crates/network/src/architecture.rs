//! The public part of a fixed-point network.
//!
//! Servers receive an [`Architecture`] from an owner whom they do not trust to be careful, so it is
//! read by [`Architecture::from_json`] and every use begins with [`Architecture::validate`].

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::limits::{MAXIMUM_CLASSES, MAXIMUM_SIZE, MINIMUM_CLASSES, MINIMUM_WIDTH};
use crate::precision::{Precision, Ring, RingRefusal, check_ring};
use crate::program::{self, Operation, ProgramError};

/// The form of an architecture as it is written and sent. Other programs read other forms; a program
/// refuses every form but its own.
pub const FORMAT: u32 = 2;

/// One step, without its weights and its name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepShape {
    /// The values it takes: 0 is the input, `i + 1` the result of step `i`.
    pub inputs: Vec<usize>,
    /// What it computes.
    pub operation: Operation,
    /// For a step that is rescaled, `l` with |z| < 2^l before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound_bits: Option<u32>,
    /// For a step that compares, the window `k` with |x| < 2^(k - 1) for every number compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<u32>,
}

/// Sizes, ranges and comparison windows of a fixed-point network: what the servers need to know to
/// evaluate it, and all that they learn of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Architecture {
    /// [`FORMAT`].
    pub format: u32,
    /// Number of input features.
    pub input_features: usize,
    /// Number of classes.
    pub classes: usize,
    /// The ring, by its width in bits; left out for that of 64, as by programs that know no other.
    #[serde(rename = "ring_bits", default, skip_serializing_if = "Ring::is_default")]
    pub ring: Ring,
    /// Fractional bits f of inputs, activations and logits.
    pub fractional_bits: u32,
    /// The steps in order; the last one gives the logits.
    pub steps: Vec<StepShape>,
    /// Comparison window for the difference of two logits.
    pub final_width: u32,
}

/// Why an architecture was refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ArchitectureError {
    /// The bytes are no architecture.
    #[error("it is no valid JSON description: {reason}")]
    Json {
        /// What is wrong.
        reason: String,
    },
    /// Another version of the program wrote it.
    #[error(
        "its format is {found}, this program reads {FORMAT}; share the model with a program of the \
         servers' version"
    )]
    Format {
        /// The format given; 1 when none is named.
        found: u32,
    },
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
    /// The steps do not fit together or are too large.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// A step cannot be evaluated in the ring of 32 bits.
    #[error("step {step} cannot be evaluated in a ring of 32 bits: {refusal}")]
    NeedsWideRing {
        /// Index of the step.
        step: usize,
        /// What the ring does not offer.
        refusal: RingRefusal,
    },
    /// A step lacks a number that its operation needs, or has one that it does not need.
    #[error("step {step} is {operation}, which takes {} {name}", if *.needed { "a" } else { "no" })]
    Number {
        /// Index of the step.
        step: usize,
        /// Its operation.
        operation: &'static str,
        /// What the number is.
        name: &'static str,
        /// Whether it is needed.
        needed: bool,
    },
    /// The last value does not give one logit a class.
    #[error("the last step gives {found} values for {classes} classes")]
    Classes {
        /// Numbers of the last value.
        found: usize,
        /// Number of classes.
        classes: usize,
    },
}

impl Architecture {
    /// Reads and validates what [`serde_json`] has written. Memory is bounded by the bytes given.
    ///
    /// # Errors
    /// [`ArchitectureError`], of another format by its number.
    pub fn from_json(bytes: &[u8]) -> Result<Self, ArchitectureError> {
        /// Formats before 2 had no number.
        #[derive(Deserialize)]
        struct Head {
            #[serde(default = "first_format")]
            format: u32,
        }
        fn first_format() -> u32 {
            1
        }
        let json = |error: serde_json::Error| ArchitectureError::Json { reason: error.to_string() };
        let Head { format: found } = serde_json::from_slice(bytes).map_err(json)?;
        if found != FORMAT {
            return Err(ArchitectureError::Format { found });
        }
        let architecture: Self = serde_json::from_slice(bytes).map_err(json)?;
        architecture.validate()?;
        Ok(architecture)
    }

    /// Checks everything that a hostile sender could have made up.
    ///
    /// After this the steps fit together, and what evaluation reserves and computes is within
    /// [`limits`](crate::limits).
    ///
    /// # Errors
    /// [`ArchitectureError`] naming the step, the number and its limit.
    pub fn validate(&self) -> Result<(), ArchitectureError> {
        if self.format != FORMAT {
            return Err(ArchitectureError::Format { found: self.format });
        }
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
        let allowed = self.ring.fractional_bits();
        let [fewest, most] = [*allowed.start() as usize, *allowed.end() as usize];
        limit("number of fractional bits", fractional_bits, fewest, most)?;
        let widest = self.precision().maximum_width() as usize;
        limit("final comparison window", self.final_width as usize, MINIMUM_WIDTH as usize, widest)?;
        let sizes = program::check(self.input_features, self.structure())?;
        check_ring(self.ring, self.structure())
            .map_err(|(step, refusal)| ArchitectureError::NeedsWideRing { step, refusal })?;
        for (step, shape) in self.steps.iter().enumerate() {
            self.validate_numbers(step, shape)?;
        }
        let found = sizes.last().copied().unwrap_or(0);
        if found != self.classes {
            return Err(ArchitectureError::Classes { found, classes: self.classes });
        }
        Ok(())
    }

    /// The ring and the fractional bits.
    #[must_use]
    pub fn precision(&self) -> Precision {
        Precision { ring: self.ring, fractional_bits: self.fractional_bits }
    }

    /// The inputs and operations of all steps.
    pub fn structure(&self) -> impl ExactSizeIterator<Item = (&[usize], &Operation)> {
        self.steps.iter().map(|step| (step.inputs.as_slice(), &step.operation))
    }

    fn validate_numbers(&self, step: usize, shape: &StepShape) -> Result<(), ArchitectureError> {
        let operation = shape.operation.name();
        let messages = shape.operation.messages();
        let (largest, widest) = (self.ring.maximum_bound_bits(), self.precision().maximum_width());
        let numbers = [
            ("bound in bits", shape.bound_bits, messages.rescale(), self.fractional_bits, largest),
            ("comparison window", shape.window, messages.compare(), MINIMUM_WIDTH, widest),
        ];
        for (name, number, needed, minimum, maximum) in numbers {
            if number.is_some() != needed {
                return Err(ArchitectureError::Number { step, operation, name, needed });
            }
            if let Some(found) = number
                && !(minimum..=maximum).contains(&found)
            {
                let [found, minimum, maximum] = [found, minimum, maximum].map(|number| number as usize);
                return Err(ProgramError::Limit { step, name, found, minimum, maximum }.into());
            }
        }
        Ok(())
    }

    /// Number of weights and biases of a valid architecture.
    #[must_use]
    pub fn parameter_count(&self) -> usize {
        self.steps.iter().map(|step| step.operation.parameters()).fold(0, usize::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dense(input: usize, inputs: usize, outputs: usize) -> StepShape {
        StepShape {
            inputs: vec![input],
            operation: Operation::Dense { inputs, outputs },
            bound_bits: Some(30),
            window: None,
        }
    }

    fn relu(input: usize) -> StepShape {
        StepShape { inputs: vec![input], operation: Operation::Relu, bound_bits: None, window: Some(20) }
    }

    fn valid() -> Architecture {
        Architecture {
            format: FORMAT,
            input_features: 4,
            classes: 3,
            ring: Ring::Bits64,
            fractional_bits: 12,
            steps: vec![dense(0, 4, 8), relu(1), dense(2, 8, 3)],
            final_width: 24,
        }
    }

    fn refused(change: impl FnOnce(&mut Architecture)) -> String {
        let mut architecture = valid();
        change(&mut architecture);
        let error = architecture.validate().expect_err("the architecture must be refused");
        let written = serde_json::to_vec(&architecture).unwrap();
        assert_eq!(Architecture::from_json(&written), Err(error.clone()));
        error.to_string()
    }

    #[test]
    fn accepts_and_counts_a_valid_one() {
        assert_eq!(valid().validate(), Ok(()));
        assert_eq!(valid().parameter_count(), 4 * 8 + 8 + 8 * 3 + 3);
        let text = serde_json::to_string(&valid()).unwrap();
        assert_eq!(Architecture::from_json(text.as_bytes()), Ok(valid()));
        assert!(text.contains(r#"{"inputs":[1],"operation":{"kind":"relu"},"window":20}"#), "{text}");
    }

    #[test]
    fn other_formats_are_refused_by_their_number() {
        let first = br#"{"input_features":4,"classes":3,"fractional_bits":12,"layers":[],"final_width":20}"#;
        assert_eq!(Architecture::from_json(first), Err(ArchitectureError::Format { found: 1 }));
        let later = br#"{"format":3,"anything":[1]}"#;
        assert_eq!(Architecture::from_json(later), Err(ArchitectureError::Format { found: 3 }));
        assert!(refused(|a| a.format = 0).contains("its format is 0, this program reads 2"));
        let text = serde_json::to_string(&valid()).unwrap();
        for broken in [&text[..text.len() / 2], "", "null", &text.replace("\"classes\"", "\"groups\"")] {
            let error = Architecture::from_json(broken.as_bytes()).expect_err("must be refused");
            assert!(matches!(error, ArchitectureError::Json { .. }), "{error}");
        }
    }

    #[test]
    fn refuses_what_a_hostile_sender_could_write() {
        assert!(refused(|a| a.input_features = 0).contains("input features is 0"));
        assert!(refused(|a| a.input_features = usize::MAX).contains("input features"));
        assert!(refused(|a| a.classes = 65).contains("classes is 65; the limit is 2 to 64"));
        assert!(refused(|a| a.classes = 4).contains("gives 3 values for 4 classes"));
        assert!(refused(|a| a.fractional_bits = 63).contains("fractional bits is 63"));
        assert!(refused(|a| a.final_width = 41).contains("window is 41"));
        assert!(refused(|a| a.steps.clear()).contains("there are 0 steps"));
        assert!(refused(|a| a.steps = vec![relu(0); 1025]).contains("there are 1025 steps"));
        assert!(refused(|a| a.steps.truncate(2)).contains("gives 8 values"));
        assert!(refused(|a| a.steps[0].inputs = vec![1]).contains("step 0 takes value 1, but only"));
        assert!(refused(|a| a.steps[2].inputs = vec![usize::MAX]).contains("step 2 takes value"));
        assert!(refused(|a| a.steps[1].inputs.clear()).contains("step 1 is relu and takes 1, not 0"));
        assert!(refused(|a| a.steps[1].inputs = vec![0; 3]).contains("takes 1, not 3"));
        assert!(refused(|a| a.steps[2] = dense(2, 7, 3)).contains("step 2 takes 7 numbers, but 8 arrive"));
        assert!(refused(|a| a.steps[1].window = Some(1)).contains("comparison window is 1"));
        assert!(refused(|a| a.steps[1].window = None).contains("relu, which takes a comparison window"));
        assert!(refused(|a| a.steps[1].bound_bits = Some(30)).contains("relu, which takes no bound in bits"));
        assert!(refused(|a| a.steps[0].bound_bits = None).contains("dense, which takes a bound in bits"));
        assert!(
            refused(|a| a.steps[0].bound_bits = Some(40))
                .contains("step 0: bound in bits is 40; the limit is 12 to 39")
        );
        assert!(refused(|a| a.steps[0] = dense(0, 4, usize::MAX)).contains("step 0: number of outputs"));
    }

    #[test]
    fn refuses_what_the_ring_of_32_bits_does_not_hold() {
        let narrow = |a: &mut Architecture| {
            a.ring = Ring::Bits32;
            a.fractional_bits = 10;
            a.final_width = 22;
        };
        let mut architecture = valid();
        narrow(&mut architecture);
        assert_eq!(architecture.validate(), Ok(()));
        let text = serde_json::to_string(&architecture).unwrap();
        assert!(text.contains(r#""ring_bits":32,"fractional_bits":10"#), "{text}");
        assert_eq!(Architecture::from_json(text.as_bytes()), Ok(architecture));
        let refused = |change: fn(&mut Architecture)| {
            refused(|a| {
                narrow(a);
                change(a);
            })
        };
        assert!(refused(|a| a.fractional_bits = 15).contains("fractional bits is 15; the limit is 6 to 14"));
        assert!(refused(|a| a.steps[0].bound_bits = Some(31)).contains("is 31; the limit is 10 to 30"));
        assert!(refused(|a| a.steps[1].window = Some(23)).contains("window is 23; the limit is 2 to 22"));
        assert!(refused(|a| a.final_width = 23).contains("window is 23; the limit is 2 to 22"));
        let message = refused(|a| {
            a.steps.remove(1);
            a.steps[1].inputs = vec![1];
        });
        assert!(
            message.contains("step 1 cannot be evaluated in a ring of 32 bits: it is dense"),
            "{message}"
        );
        let text = text.replace("\"ring_bits\":32", "\"ring_bits\":48");
        let error = Architecture::from_json(text.as_bytes()).expect_err("there is no such ring").to_string();
        assert!(error.contains("a ring of 48 bits is not supported"), "{error}");
    }

    #[test]
    fn refuses_more_weights_numbers_or_steps_than_servers_have_room_for() {
        let message = refused(|a| {
            a.input_features = MAXIMUM_SIZE;
            a.steps = vec![dense(0, MAXIMUM_SIZE, MAXIMUM_SIZE), dense(1, MAXIMUM_SIZE, 3)];
        });
        assert!(message.contains("step 0: with it, there are more than 67108864 weights"), "{message}");
        let message = refused(|a| {
            a.input_features = MAXIMUM_SIZE;
            a.steps = (0..100).map(|_| relu(0)).collect();
        });
        assert!(message.contains("step 64: with it, there are more than 4194304 intermediate"), "{message}");
        let message = refused(|a| a.steps = (0..200).map(relu).collect());
        assert!(
            message.contains("step 128: with it, there are more than 128 steps with messages"),
            "{message}"
        );
        let wide = program::Convolution {
            channels: [1024, 1024],
            groups: 1,
            size: [8, 8],
            kernel: [7, 7],
            strides: [1, 1],
            dilations: [1, 1],
            pads: [3, 3, 3, 3],
        };
        let message = refused(|a| {
            a.input_features = MAXIMUM_SIZE;
            a.steps = vec![StepShape { operation: Operation::Convolution(wide), ..dense(0, 1, 1) }];
        });
        assert!(message.contains("more than 2147483648 multiplications"), "{message}");
    }
}
