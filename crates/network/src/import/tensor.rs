//! Tensors of the file as arrays, with every declared size checked against the data that is there.

use ndarray::{ArrayD, IxDyn};
use zeroize::Zeroize;

use super::{
    ImportError, MAXIMUM_RANK,
    budget::Budget,
    constant::extent,
    error::quoted,
    external::is_external,
    value::{Integer, Value},
};
use crate::onnx::{TensorProto, data_type};

/// Bytes that the elements of a tensor take in another file.
pub(super) fn external_bytes(tensor: &TensorProto) -> Result<u64, ImportError> {
    let name = &tensor.name;
    let count: usize = shape(tensor, name)?.iter().product();
    Ok((count as u64).saturating_mul(element_size(tensor, name)? as u64))
}

/// Converts a tensor to a value. `name` is used in errors. The tensor is erased.
pub(super) fn decode(
    tensor: &mut TensorProto,
    name: &str,
    budget: &mut Budget,
) -> Result<Value, ImportError> {
    let result = convert(tensor, name, budget);
    erase(tensor);
    result
}

/// Overwrites the elements of a tensor.
pub(super) fn erase(tensor: &mut TensorProto) {
    tensor.raw_data.zeroize();
    tensor.float_data.zeroize();
    tensor.double_data.zeroize();
    tensor.int32_data.zeroize();
}

fn convert(tensor: &TensorProto, name: &str, budget: &mut Budget) -> Result<Value, ImportError> {
    if is_external(tensor) {
        // Those of the graph's constants were read before; a node's own is inside the model.
        return Err(ImportError::ExternalData {
            tensor: quoted(name),
            location: "of a node".to_owned(),
            reason: "only initialisers are read from other files".to_owned(),
        });
    }
    let shape = shape(tensor, name)?;
    let count = shape.iter().product::<usize>();
    let wrong_size = |found: usize| ImportError::TensorData {
        tensor: quoted(name),
        shape: tensor.dims.clone(),
        reason: format!("its data has {found} elements instead of {count}"),
    };
    // Nothing is reserved before the data is known to be as long as the shape says.
    if element_count(tensor, name)? != count {
        return Err(wrong_size(element_count(tensor, name)?));
    }
    budget.charge(extent(&shape), name)?;
    let raw = &tensor.raw_data;
    let is_raw = !raw.is_empty();
    let value = match tensor.data_type {
        data_type::FLOAT if is_raw => {
            floats(name, shape, chunks(raw).map(|bytes| f64::from(f32::from_le_bytes(bytes))))?
        }
        data_type::FLOAT => floats(name, shape, tensor.float_data.iter().map(|&value| f64::from(value)))?,
        data_type::DOUBLE if is_raw => floats(name, shape, chunks(raw).map(f64::from_le_bytes))?,
        data_type::DOUBLE => floats(name, shape, tensor.double_data.iter().copied())?,
        data_type::FLOAT16 if is_raw => {
            floats(name, shape, chunks(raw).map(|bytes| half(u16::from_le_bytes(bytes))))?
        }
        // Sixteen-bit formats without raw data keep their bits in the low half of an integer.
        data_type::FLOAT16 => floats(name, shape, tensor.int32_data.iter().map(|&bits| half(bits as u16)))?,
        data_type::BFLOAT16 if is_raw => {
            floats(name, shape, chunks(raw).map(|bytes| brain_half(u16::from_le_bytes(bytes))))?
        }
        data_type::BFLOAT16 => {
            floats(name, shape, tensor.int32_data.iter().map(|&bits| brain_half(bits as u16)))?
        }
        data_type::INT64 if is_raw => integers(shape, chunks(raw).map(i64::from_le_bytes)),
        data_type::INT64 => integers(shape, tensor.int64_data.iter().copied()),
        data_type::INT32 if is_raw => {
            integers(shape, chunks(raw).map(|bytes| i64::from(i32::from_le_bytes(bytes))))
        }
        // Weights of quantised networks: numbers, which are erased, where unsigned ones are often masks.
        data_type::INT8 if is_raw => {
            floats(name, shape, raw.iter().map(|&byte| f64::from(byte.cast_signed())))?
        }
        data_type::INT8 => floats(name, shape, tensor.int32_data.iter().map(|&value| f64::from(value)))?,
        data_type::BOOL | data_type::UINT8 if is_raw => {
            integers(shape, raw.iter().map(|&byte| i64::from(byte)))
        }
        data_type::INT32 | data_type::BOOL | data_type::UINT8 => {
            integers(shape, tensor.int32_data.iter().map(|&value| i64::from(value)))
        }
        other => return Err(ImportError::TensorType { tensor: quoted(name), data_type: other }),
    };
    Ok(value)
}

fn shape(tensor: &TensorProto, name: &str) -> Result<Vec<usize>, ImportError> {
    let refuse = |reason: String| ImportError::TensorData {
        tensor: quoted(name),
        shape: tensor.dims.iter().copied().take(MAXIMUM_RANK).collect(),
        reason,
    };
    if tensor.dims.len() > MAXIMUM_RANK {
        return Err(refuse(format!("{} dimensions exceed {MAXIMUM_RANK}", tensor.dims.len())));
    }
    let mut shape = Vec::with_capacity(tensor.dims.len());
    let mut product = 1_usize;
    for &dimension in &tensor.dims {
        let size = usize::try_from(dimension).map_err(|_| refuse("a dimension is negative".to_owned()))?;
        // Zeros are left out of the product, so that a zero does not hide other dimensions that
        // overflow when the array library multiplies them.
        product = product
            .checked_mul(size.max(1))
            .filter(|&product| product <= isize::MAX as usize / size_of::<f64>())
            .ok_or_else(|| refuse("its size overflows".to_owned()))?;
        shape.push(size);
    }
    Ok(shape)
}

/// Bytes of one element as raw data.
fn element_size(tensor: &TensorProto, name: &str) -> Result<usize, ImportError> {
    Ok(match tensor.data_type {
        data_type::DOUBLE | data_type::INT64 => 8,
        data_type::FLOAT | data_type::INT32 => 4,
        data_type::FLOAT16 | data_type::BFLOAT16 => 2,
        data_type::BOOL | data_type::UINT8 | data_type::INT8 => 1,
        other => return Err(ImportError::TensorType { tensor: quoted(name), data_type: other }),
    })
}

/// Number of elements that the data of the tensor holds.
fn element_count(tensor: &TensorProto, name: &str) -> Result<usize, ImportError> {
    let size = element_size(tensor, name)?;
    let typed = match tensor.data_type {
        data_type::FLOAT => tensor.float_data.len(),
        data_type::DOUBLE => tensor.double_data.len(),
        data_type::INT64 => tensor.int64_data.len(),
        _ => tensor.int32_data.len(),
    };
    let bytes = tensor.raw_data.len();
    if bytes == 0 {
        return Ok(typed);
    }
    if !bytes.is_multiple_of(size) {
        return Err(ImportError::TensorData {
            tensor: quoted(name),
            shape: tensor.dims.clone(),
            reason: format!("its {bytes} bytes are no whole number of elements of {size} bytes"),
        });
    }
    Ok(bytes / size)
}

fn chunks<const SIZE: usize>(raw: &[u8]) -> impl Iterator<Item = [u8; SIZE]> {
    raw.as_chunks::<SIZE>().0.iter().copied()
}

fn floats(name: &str, shape: Vec<usize>, elements: impl Iterator<Item = f64>) -> Result<Value, ImportError> {
    let array = ArrayD::from_shape_vec(IxDyn(&shape), elements.collect())
        .expect("the number of elements was compared with the shape");
    if let Some((index, &value)) = array.iter().enumerate().find(|(_, value)| !value.is_finite()) {
        return Err(ImportError::NotFinite { tensor: quoted(name), index, value });
    }
    Ok(Value::float(array))
}

fn integers(shape: Vec<usize>, elements: impl Iterator<Item = i64>) -> Value {
    let array = ArrayD::from_shape_vec(IxDyn(&shape), elements.map(Integer::Known).collect())
        .expect("the number of elements was compared with the shape");
    Value::integer(array)
}

/// Value of an IEEE 754 half-precision number.
fn half(bits: u16) -> f64 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let exponent = i32::from(bits >> 10 & 0x1f);
    let fraction = f64::from(bits & 0x3ff);
    let magnitude = match exponent {
        0 => fraction * 2_f64.powi(-24),
        0x1f if fraction == 0.0 => f64::INFINITY,
        0x1f => f64::NAN,
        _ => (1024.0 + fraction) * 2_f64.powi(exponent - 25),
    };
    sign * magnitude
}

/// Value of a bfloat16 number, the upper half of a single-precision one.
fn brain_half(bits: u16) -> f64 {
    f64::from(f32::from_bits(u32::from(bits) << 16))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(tensor: TensorProto) -> ImportError {
        let mut tensor = tensor;
        decode(&mut tensor, "w", &mut Budget::default()).err().expect("the tensor must be refused")
    }

    #[test]
    fn half_precision_values() {
        assert_eq!(half(0x3c00), 1.0);
        assert_eq!(half(0xc000), -2.0);
        assert_eq!(half(0x7bff), 65_504.0);
        assert_eq!(half(0x0001), 2_f64.powi(-24));
        assert_eq!(half(0x0400), 2_f64.powi(-14));
        assert_eq!(half(0xfc00), f64::NEG_INFINITY);
        assert!(half(0x7e00).is_nan());
        assert_eq!(brain_half(0x3fc0), 1.5);
    }

    #[test]
    fn sizes_that_lie_are_refused_before_memory_is_reserved() {
        let huge = TensorProto {
            dims: vec![i64::MAX, 2],
            data_type: data_type::FLOAT,
            float_data: vec![1.0],
            ..Default::default()
        };
        assert!(refusal(huge).to_string().contains("overflows"));
        let long = TensorProto {
            dims: vec![1 << 40],
            data_type: data_type::FLOAT,
            float_data: vec![1.0],
            ..Default::default()
        };
        assert!(refusal(long).to_string().contains("1 elements instead of 1099511627776"));
        let hidden = TensorProto {
            dims: vec![0, i64::MAX, i64::MAX],
            data_type: data_type::FLOAT,
            ..Default::default()
        };
        assert!(refusal(hidden).to_string().contains("overflows"));
        let negative = TensorProto { dims: vec![-1], data_type: data_type::FLOAT, ..Default::default() };
        assert!(refusal(negative).to_string().contains("negative"));
        let odd = TensorProto {
            dims: vec![1],
            data_type: data_type::FLOAT,
            raw_data: vec![0; 5],
            ..Default::default()
        };
        assert!(refusal(odd).to_string().contains("no whole number"));
        let deep = TensorProto { dims: vec![1; 1000], data_type: data_type::FLOAT, ..Default::default() };
        assert!(refusal(deep).to_string().contains("1000 dimensions"));
    }

    #[test]
    fn broken_numbers_and_types_are_named() {
        let nan = TensorProto {
            dims: vec![2],
            data_type: data_type::FLOAT16,
            raw_data: vec![0, 0x3c, 0, 0x7e],
            ..Default::default()
        };
        assert!(matches!(refusal(nan), ImportError::NotFinite { index: 1, .. }));
        let text = TensorProto { data_type: data_type::STRING, ..Default::default() };
        assert!(matches!(refusal(text), ImportError::TensorType { data_type: 8, .. }));
    }
}
