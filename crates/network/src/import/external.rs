//! Weights in files beside the model, as large models have them.
//!
//! Only regular files inside the model's own folder are read, whatever links and names say, and only the
//! bytes that a tensor names, which must be as many as its shape takes.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Component, Path},
};

use super::{ImportError, MAXIMUM_FILE_BYTES, error::escaped, error::quoted, tensor};
use crate::onnx::{DATA_LOCATION_EXTERNAL, TensorProto};

/// Reads the data of all tensors that keep it in other files. Without a folder there are none to read.
pub(super) fn load(tensors: &mut [TensorProto], folder: Option<&Path>) -> Result<(), ImportError> {
    let mut left = MAXIMUM_FILE_BYTES;
    let mut files = BTreeMap::new();
    for tensor in tensors.iter_mut().filter(|tensor| is_external(tensor)) {
        load_one(tensor, folder, &mut files, &mut left)?;
    }
    Ok(())
}

/// True for a tensor whose data is in another file.
pub(super) fn is_external(tensor: &TensorProto) -> bool {
    tensor.data_location == DATA_LOCATION_EXTERNAL || !tensor.external_data.is_empty()
}

fn load_one(
    tensor: &mut TensorProto,
    folder: Option<&Path>,
    files: &mut BTreeMap<String, File>,
    left: &mut u64,
) -> Result<(), ImportError> {
    let entry =
        |key: &str| tensor.external_data.iter().find(|entry| entry.key == key).map(|entry| &entry.value);
    let location = entry("location").cloned().unwrap_or_default();
    let refused = |reason: String| ImportError::ExternalData {
        tensor: quoted(&tensor.name),
        location: if location.is_empty() { "not named".to_owned() } else { escaped(&location) },
        reason,
    };
    let Some(folder) = folder else {
        return Err(refused("the model was given without a folder".to_owned()));
    };
    let number = |key: &str| match entry(key) {
        None => Ok(None),
        Some(text) => text.parse::<u64>().map(Some).map_err(|_| refused(format!("its {key} is no number"))),
    };
    let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
    let bytes = tensor::external_bytes(tensor)?;
    if let Some(length) = length.filter(|&length| length != bytes) {
        return Err(refused(format!("it names {length} bytes, its shape takes {bytes}")));
    }
    *left = left.checked_sub(bytes).ok_or_else(|| {
        refused(format!("with it there would be more than {MAXIMUM_FILE_BYTES} bytes in other files"))
    })?;
    if !files.contains_key(&location) {
        let file = open(folder, &location).map_err(refused)?;
        files.insert(location.clone(), file);
    }
    let file = files.get_mut(&location).expect("it was opened");
    let io = |error: std::io::Error| refused(error.to_string());
    let size = file.metadata().map_err(io)?.len();
    if offset.checked_add(bytes).is_none_or(|end| end > size) {
        return Err(refused(format!("it is {bytes} bytes from {offset} on, the file has {size}")));
    }
    file.seek(SeekFrom::Start(offset)).map_err(io)?;
    // The file holds as many.
    let mut raw_data = vec![0; bytes as usize];
    file.read_exact(&mut raw_data).map_err(io)?;
    tensor.raw_data = raw_data;
    tensor.external_data.clear();
    tensor.data_location = 0;
    Ok(())
}

/// Opens a regular file inside `folder`.
fn open(folder: &Path, location: &str) -> Result<File, String> {
    let plain = !location.is_empty()
        && Path::new(location)
            .components()
            .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    let outside = || "only files in the model's own folder are read".to_owned();
    if !plain {
        return Err(outside());
    }
    let folder = folder.canonicalize().map_err(|error| error.to_string())?;
    // Links are followed before the comparison.
    let path = folder.join(location).canonicalize().map_err(|error| error.to_string())?;
    if !path.starts_with(&folder) {
        return Err(outside());
    }
    // A pipe would be waited for without end.
    if !path.metadata().map_err(|error| error.to_string())?.is_file() {
        return Err("it is no regular file".to_owned());
    }
    File::open(path).map_err(|error| error.to_string())
}
