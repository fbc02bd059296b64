//! The public range of every input feature, and the encoding of inputs to fixed point.
//!
//! Feature `j` with range `[minimum_j, maximum_j]` gets the exponent `e_j`, the smallest integer with
//! `max(|minimum_j|, |maximum_j|) <= 2^e_j`. A client encodes the feature as
//! `round(x_j · 2^-e_j · 2^f)`, which lies in `[-2^f, 2^f]`, and the owner multiplies row `j` of its
//! first weights by `2^e_j`. So a column around 0.001 and one around 4000 are equally exact. Powers
//! of two are used because they change no bit of a mantissa.

use std::fmt::Display;

use concilium_ring::FixedPoint;
use ndarray::{Array2, ArrayView2, Axis};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    limits::{MAXIMUM_FRACTIONAL_BITS, MAXIMUM_SIZE},
    model::feature_count,
};

/// Smallest exponent of a feature's scale.
pub const MINIMUM_EXPONENT: i32 = -30;

/// Largest exponent of a feature's scale.
pub const MAXIMUM_EXPONENT: i32 = 40;

/// Largest magnitude that a range may name, 2^40.
pub const MAXIMUM_MAGNITUDE: f64 = (1_u64 << MAXIMUM_EXPONENT) as f64;

/// Shape of one sample and the public range of each of its features.
///
/// All owners and clients of a task use the same domain. As text it is
/// `{"shape": [1, 28, 28], "minimum": [0.0], "maximum": [1.0]}`; a range of one value stands for
/// every feature.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Description", into = "Description")]
pub struct InputDomain {
    shape: Vec<usize>,
    minimum: Vec<f64>,
    maximum: Vec<f64>,
}

/// The unchecked form of an [`InputDomain`] in files and messages.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    shape: Vec<usize>,
    minimum: Vec<f64>,
    maximum: Vec<f64>,
}

/// Why a domain or an input was refused.
#[derive(Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum InputError {
    /// The shape of a sample has no dimension, a zero, or too many features.
    #[error(
        "sample shape {shape:?} must have at least one dimension, no zero, and at most \
         {MAXIMUM_SIZE} features in all"
    )]
    Shape {
        /// The shape given.
        shape: Vec<usize>,
    },
    /// A bound is given for a number of features other than one or all.
    #[error(
        "{bound} has {found} values for {features} features; give one value for all features or \
         one for each"
    )]
    BoundLength {
        /// "minimum" or "maximum".
        bound: &'static str,
        /// Number of values given.
        found: usize,
        /// Number of features of a sample.
        features: usize,
    },
    /// A bound is NaN, infinite or too large.
    #[error(
        "{bound} of feature {feature} is {value}; it must be finite and of magnitude at most 2^40. \
         Scale the feature before use"
    )]
    BoundValue {
        /// "minimum" or "maximum".
        bound: &'static str,
        /// Index of the feature.
        feature: usize,
        /// The bound given.
        value: f64,
    },
    /// A range is empty.
    #[error("feature {feature} has minimum {minimum} above maximum {maximum}")]
    EmptyRange {
        /// Index of the feature.
        feature: usize,
        /// Its minimum.
        minimum: f64,
        /// Its maximum.
        maximum: f64,
    },
    /// The number of fractional bits is not supported.
    #[error(
        "{fractional_bits} fractional bits are not supported; the limit is \
             {MAXIMUM_FRACTIONAL_BITS}"
    )]
    FractionalBits {
        /// The number given.
        fractional_bits: u32,
    },
    /// A row has the wrong number of values.
    #[error(
        "{}input has {found} values; the task expects {expected}, shape {shape:?} flattened row by \
         row", RowPrefix(*.row)
    )]
    Length {
        /// Row of a batch, when there is one.
        row: Option<usize>,
        /// Number of values given.
        found: usize,
        /// Number of features of a sample.
        expected: usize,
        /// Shape of a sample.
        shape: Vec<usize>,
    },
    /// A value is NaN or infinite.
    #[error(
        "{}feature {feature} is {value}; replace missing values by a number from {minimum} to \
         {maximum}", RowPrefix(*.row)
    )]
    NotFinite {
        /// Row of a batch, when there is one.
        row: Option<usize>,
        /// Index of the feature.
        feature: usize,
        /// The value given.
        value: f64,
        /// Smallest value allowed.
        minimum: f64,
        /// Largest value allowed.
        maximum: f64,
    },
    /// A value lies outside the range of its feature.
    #[error(
        "{}feature {feature} is {value}; the task allows {minimum} to {maximum}. Check that the \
         input is scaled as the task describes, or clip it", RowPrefix(*.row)
    )]
    OutOfRange {
        /// Row of a batch, when there is one.
        row: Option<usize>,
        /// Index of the feature.
        feature: usize,
        /// The value given.
        value: f64,
        /// Smallest value allowed.
        minimum: f64,
        /// Largest value allowed.
        maximum: f64,
    },
}

/// Prints "row 3: " or nothing.
struct RowPrefix(Option<usize>);

impl Display for RowPrefix {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.map_or(Ok(()), |row| write!(formatter, "row {row}: "))
    }
}

impl InputDomain {
    /// Builds a domain from the shape of a sample and the range of its features.
    ///
    /// `minimum` and `maximum` have one value for all features or one for each, in row-major order.
    ///
    /// # Errors
    /// [`InputError`] when the shape is empty or too large, a bound has the wrong length, is not
    /// finite or above 2^40 in magnitude, or a minimum is above its maximum.
    pub fn new(shape: Vec<usize>, minimum: Vec<f64>, maximum: Vec<f64>) -> Result<Self, InputError> {
        let features = feature_count(&shape).ok_or_else(|| InputError::Shape { shape: shape.clone() })?;
        let minimum = expand("minimum", minimum, features)?;
        let maximum = expand("maximum", maximum, features)?;
        for (feature, (&low, &high)) in minimum.iter().zip(&maximum).enumerate() {
            if low > high {
                return Err(InputError::EmptyRange { feature, minimum: low, maximum: high });
            }
        }
        Ok(Self { shape, minimum, maximum })
    }

    /// Shape of one sample, without the batch dimension.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of features of one sample.
    #[must_use]
    pub fn features(&self) -> usize {
        self.minimum.len()
    }

    /// Smallest value of each feature.
    #[must_use]
    pub fn minimum(&self) -> &[f64] {
        &self.minimum
    }

    /// Largest value of each feature.
    #[must_use]
    pub fn maximum(&self) -> &[f64] {
        &self.maximum
    }

    /// Exponent `e_j` of every feature: the smallest integer with
    /// `max(|minimum_j|, |maximum_j|) <= 2^e_j`, clamped to -30..=40; 0 for a feature that is always
    /// zero.
    #[must_use]
    pub fn exponents(&self) -> Vec<i32> {
        self.minimum
            .iter()
            .zip(&self.maximum)
            .map(|(low, high)| exponent(low.abs().max(high.abs())))
            .collect()
    }

    /// True when samples of `other` flatten to the features of this domain in the same order.
    ///
    /// Dimensions of one may differ, and one of the two may be flat.
    #[must_use]
    pub fn accepts_shape(&self, other: &[usize]) -> bool {
        let squeezed = |shape: &[usize]| -> Vec<usize> {
            shape.iter().copied().filter(|&dimension| dimension != 1).collect()
        };
        let (ours, theirs) = (squeezed(&self.shape), squeezed(other));
        feature_count(other) == Some(self.features())
            && (ours == theirs || ours.len() <= 1 || theirs.len() <= 1)
    }

    /// Encodes one sample, flattened in row-major order, to integers in
    /// `[-2^fractional_bits, 2^fractional_bits]`.
    ///
    /// A value that misses its range by no more than the rounding of single precision is moved to
    /// the nearest bound, because ranges are usually written in decimal and data kept in f32.
    ///
    /// # Errors
    /// [`InputError`] naming feature, value and limit when a value is NaN, infinite or out of range,
    /// or the expected shape when the length is wrong.
    pub fn encode_row(&self, row: &[f64], fractional_bits: u32) -> Result<Vec<i64>, InputError> {
        let format = input_format(fractional_bits)?;
        let mut encoded = Vec::with_capacity(self.features());
        self.encode_into(row.iter().copied(), None, &self.divisions(), format, &mut encoded)?;
        Ok(encoded)
    }

    /// Encodes a batch `[rows, features]` as [`Self::encode_row`] does each row.
    ///
    /// # Errors
    /// As [`Self::encode_row`], naming the row as well.
    pub fn encode(&self, rows: ArrayView2<'_, f64>, fractional_bits: u32) -> Result<Array2<i64>, InputError> {
        let format = input_format(fractional_bits)?;
        // Before anything is reserved: a batch of the wrong width is refused at its first row.
        if rows.ncols() != self.features() {
            return Err(self.length_error(Some(0), rows.ncols()));
        }
        let divisions = self.divisions();
        let mut encoded = Vec::with_capacity(rows.len());
        for (index, row) in rows.axis_iter(Axis(0)).enumerate() {
            let values = row.iter().copied();
            self.encode_into(values, Some(index), &divisions, format, &mut encoded)?;
        }
        Ok(Array2::from_shape_vec(rows.dim(), encoded)
            .expect("every row pushed as many values as the domain has features"))
    }

    fn length_error(&self, row: Option<usize>, found: usize) -> InputError {
        InputError::Length { row, found, expected: self.features(), shape: self.shape.clone() }
    }

    /// What divides the values of each feature by its scale.
    fn divisions(&self) -> Vec<f64> {
        self.exponents().into_iter().map(|exponent| 2_f64.powi(-exponent)).collect()
    }

    fn encode_into(
        &self,
        values: impl ExactSizeIterator<Item = f64>,
        row: Option<usize>,
        divisions: &[f64],
        format: FixedPoint,
        encoded: &mut Vec<i64>,
    ) -> Result<(), InputError> {
        if values.len() != self.features() {
            return Err(self.length_error(row, values.len()));
        }
        for (feature, value) in values.enumerate() {
            let (minimum, maximum) = (self.minimum[feature], self.maximum[feature]);
            if !value.is_finite() {
                return Err(InputError::NotFinite { row, feature, value, minimum, maximum });
            }
            let tolerance = f64::from(f32::EPSILON) * minimum.abs().max(maximum.abs());
            if value < minimum - tolerance || value > maximum + tolerance {
                return Err(InputError::OutOfRange { row, feature, value, minimum, maximum });
            }
            encoded.push(encode_value(value.clamp(minimum, maximum), divisions[feature], format));
        }
        Ok(())
    }

    /// Smallest and largest encoded value of every feature.
    pub(crate) fn encoded_bounds(&self, format: FixedPoint) -> Vec<(i64, i64)> {
        // Rounding is monotonic, so the encoded bounds enclose every encoded value.
        self.divisions()
            .into_iter()
            .enumerate()
            .map(|(feature, division)| {
                (
                    encode_value(self.minimum[feature], division, format),
                    encode_value(self.maximum[feature], division, format),
                )
            })
            .collect()
    }
}

impl TryFrom<Description> for InputDomain {
    type Error = InputError;

    fn try_from(description: Description) -> Result<Self, Self::Error> {
        Self::new(description.shape, description.minimum, description.maximum)
    }
}

impl From<InputDomain> for Description {
    fn from(domain: InputDomain) -> Self {
        // A common bound is written once, so that an image domain stays one line.
        let shorten = |mut bounds: Vec<f64>| {
            if bounds.windows(2).all(|pair| pair[0].to_bits() == pair[1].to_bits()) {
                bounds.truncate(1);
            }
            bounds
        };
        Self { shape: domain.shape, minimum: shorten(domain.minimum), maximum: shorten(domain.maximum) }
    }
}

fn expand(bound: &'static str, mut values: Vec<f64>, features: usize) -> Result<Vec<f64>, InputError> {
    for (feature, &value) in values.iter().enumerate() {
        if !value.is_finite() || value.abs() > MAXIMUM_MAGNITUDE {
            return Err(InputError::BoundValue { bound, feature, value });
        }
    }
    if values.len() == 1 {
        values.resize(features, values[0]);
    }
    if values.len() != features {
        return Err(InputError::BoundLength { bound, found: values.len(), features });
    }
    Ok(values)
}

fn input_format(fractional_bits: u32) -> Result<FixedPoint, InputError> {
    FixedPoint::new(fractional_bits)
        .ok()
        .filter(|_| fractional_bits <= MAXIMUM_FRACTIONAL_BITS)
        .ok_or(InputError::FractionalBits { fractional_bits })
}

/// Smallest `e` in -30..=40 with `magnitude <= 2^e`; 0 for a magnitude of 0.
fn exponent(magnitude: f64) -> i32 {
    if magnitude == 0.0 {
        return 0;
    }
    // Of a number below 2^-1022 the bits say too small an exponent, which is below the range anyhow.
    let bits = magnitude.to_bits();
    let floor = (bits >> (f64::MANTISSA_DIGITS - 1)) as i32 - (f64::MAX_EXP - 1);
    let is_power = bits << (u64::BITS - f64::MANTISSA_DIGITS + 1) == 0;
    (floor + i32::from(!is_power)).clamp(MINIMUM_EXPONENT, MAXIMUM_EXPONENT)
}

/// `round(value · division · 2^fractional_bits)` for a value within the range of its feature.
fn encode_value(value: f64, division: f64, format: FixedPoint) -> i64 {
    // Multiplying by a power of two is exact here, so the only error is the rounding.
    format
        .encode_integer(value * division)
        .expect("a value within its range is at most 1 when divided by the scale of its feature")
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn exponents_are_the_smallest_that_cover() {
        let domain = InputDomain::new(
            vec![7],
            vec![0.0, -4254.0, 0.0, 0.001, 0.0, -1e-12, 0.0],
            vec![1.0, 10.0, 0.0, 0.001, 1.000_001, 0.0, MAXIMUM_MAGNITUDE],
        )
        .unwrap();
        assert_eq!(domain.exponents(), vec![0, 13, 0, -9, 1, -30, 40]);
    }

    #[test]
    fn refuses_broken_domains() {
        let build = |shape: &[usize], minimum: &[f64], maximum: &[f64]| {
            InputDomain::new(shape.to_vec(), minimum.to_vec(), maximum.to_vec())
        };
        assert!(matches!(build(&[], &[0.0], &[1.0]), Err(InputError::Shape { .. })));
        assert!(matches!(build(&[0], &[0.0], &[1.0]), Err(InputError::Shape { .. })));
        assert!(matches!(build(&[usize::MAX, usize::MAX], &[0.0], &[1.0]), Err(InputError::Shape { .. })));
        assert_eq!(
            build(&[3], &[0.0, 0.0], &[1.0]),
            Err(InputError::BoundLength { bound: "minimum", found: 2, features: 3 })
        );
        assert!(matches!(
            build(&[1], &[f64::NAN], &[1.0]),
            Err(InputError::BoundValue { bound: "minimum", .. })
        ));
        assert!(matches!(
            build(&[1], &[0.0], &[2.0 * MAXIMUM_MAGNITUDE]),
            Err(InputError::BoundValue { bound: "maximum", .. })
        ));
        assert_eq!(
            build(&[2], &[0.0, 2.0], &[1.0]),
            Err(InputError::EmptyRange { feature: 1, minimum: 2.0, maximum: 1.0 })
        );
    }

    #[test]
    fn errors_name_row_feature_value_and_limit() {
        let domain = InputDomain::new(vec![2], vec![0.0], vec![1.0]).unwrap();
        let error = domain.encode(array![[0.0, 0.5], [0.0, 1.5]].view(), 12).unwrap_err();
        assert_eq!(
            error.to_string(),
            "row 1: feature 1 is 1.5; the task allows 0 to 1. Check that the input is scaled as \
             the task describes, or clip it"
        );
        let error = domain.encode_row(&[f64::NAN, 0.0], 12).unwrap_err();
        assert!(error.to_string().starts_with("feature 0 is NaN"), "{error}");
        let error = domain.encode_row(&[0.0], 12).unwrap_err();
        assert!(error.to_string().contains("expects 2, shape [2]"), "{error}");
        assert!(domain.encode(Array2::zeros((2, 3)).view(), 12).is_err());
        assert!(matches!(
            domain.encode_row(&[0.0, 0.0], 60),
            Err(InputError::FractionalBits { fractional_bits: 60 })
        ));
    }

    #[test]
    fn a_bound_rounded_to_single_precision_is_accepted() {
        let domain = InputDomain::new(vec![1], vec![-0.1], vec![0.1]).unwrap();
        assert_eq!(domain.encode_row(&[f64::from(0.1_f32)], 10), domain.encode_row(&[0.1], 10));
        assert!(domain.encode_row(&[0.1001], 10).is_err());
    }

    #[test]
    fn shapes_fit_when_the_order_of_features_is_the_same() {
        let domain = InputDomain::new(vec![1, 28, 28], vec![0.0], vec![1.0]).unwrap();
        assert!(domain.accepts_shape(&[784]));
        assert!(domain.accepts_shape(&[28, 28]));
        assert!(!domain.accepts_shape(&[14, 56]));
        assert!(!domain.accepts_shape(&[783]));
        let colours = InputDomain::new(vec![3, 4, 4], vec![0.0], vec![1.0]).unwrap();
        assert!(!colours.accepts_shape(&[4, 4, 3]));
    }

    #[test]
    fn text_form_round_trips_and_is_checked() {
        let domain = InputDomain::new(vec![2], vec![0.0], vec![1.0, 3.5]).unwrap();
        let text = serde_json::to_string(&domain).unwrap();
        assert_eq!(text, r#"{"shape":[2],"minimum":[0.0],"maximum":[1.0,3.5]}"#);
        assert_eq!(serde_json::from_str::<InputDomain>(&text).unwrap(), domain);
        let broken = r#"{"shape":[2],"minimum":[5.0],"maximum":[1.0]}"#;
        assert!(serde_json::from_str::<InputDomain>(broken).is_err());
    }
}
