//! Requests that another process can repeat: request id and share seeds derived from a key.
//!
//! The servers charge a request id once and send the stored answer when it is repeated with the same
//! shares. A process that draws both at random takes them with it when it dies, and whoever runs it
//! again pays again. With a [`RepeatKey`] the same rows of the same task make the same request, byte
//! for byte, in any process that has the key.
//!
//! # Derivation
//! HKDF-SHA256 (RFC 5869) without salt; the key is the input keying material, and the information is
//!
//! ```text
//! "concilium v1 repeatable request"
//! length of the caller's URI as u64, the URI (concilium://client/<name>)
//! length of the task's name as u64, the name
//! epoch as u64
//! policy digest, 32 bytes
//! rows of the request as u32
//! SHA-256 of the encoded values as i64, row by row, 32 bytes
//! ```
//!
//! with all integers little-endian. Of the 80 bytes of output the first 16 are the request id, the
//! next 32 the seed of component 0, and the last 32 that of component 1.
//!
//! # Why the values are part of it
//! Server 1 holds x_2 = x - x_0 - x_1. If two different inputs x and x' were shared with the same
//! seeds, the difference of the two x_2 would be x - x', and the server would know it. So everything
//! that may differ between two requests goes into the derivation, the values first of all: two
//! different requests never have a seed in common.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use concilium_mpc::input::SEED_BYTES;
use concilium_rpc::identity::Identity;
use hkdf::Hkdf;
use rand::{TryRng as _, rngs::SysRng};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::{task::Task, terminal::FailureClass};

/// Bytes of a repeat key.
pub const REPEAT_KEY_BYTES: usize = 32;

/// Bytes of a request id.
const REQUEST_ID_BYTES: usize = 16;

/// What the derivation begins with, so that the key gives nothing that anything else could use.
const LABEL: &[u8] = b"concilium v1 repeatable request";

/// Most bytes of a key file that are read: more than 64 digits and a line end are no key.
const MAXIMUM_FILE_BYTES: u64 = 256;

/// Why a repeat key cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RepeatKeyError {
    /// The file cannot be read.
    #[error("cannot read the repeat key `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason that the system gives.
        source: io::Error,
    },
    /// The file holds something else. Its content may be a secret, so it is not repeated.
    #[error(
        "`{}` holds no repeat key, which is {} hexadecimal digits; name a file that does not exist \
         to have a new key made",
        path.display(),
        2 * REPEAT_KEY_BYTES
    )]
    Content {
        /// The file.
        path: PathBuf,
    },
    /// A new key cannot be written. Nothing was sent.
    #[error("cannot write a new repeat key to `{}`: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The reason that the system gives.
        source: io::Error,
    },
}

impl RepeatKeyError {
    /// What kind of failure it is, for the exit code of a program.
    pub fn class(&self) -> FailureClass {
        match self {
            Self::Read { .. } | Self::Content { .. } => FailureClass::Input,
            Self::Write { .. } => FailureClass::Local,
        }
    }
}

/// A client's key for repeats. SECRET: a server that had it could confirm a guess of an input, because
/// the request id would tell whether the guess is right.
pub struct RepeatKey(Zeroizing<[u8; REPEAT_KEY_BYTES]>);

/// Id and seeds of one request.
pub(crate) struct RepeatableRequest {
    /// The id of the request.
    pub(crate) request_id: [u8; REQUEST_ID_BYTES],
    /// Seeds of components 0 and 1. SECRET.
    pub(crate) seeds: Zeroizing<[[u8; SEED_BYTES]; 2]>,
}

impl RepeatKey {
    /// A key of these bytes, which must be uniformly random.
    pub fn new(bytes: [u8; REPEAT_KEY_BYTES]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The key in a file of 64 hexadecimal digits. If there is no such file, it is made with a new
    /// random key that only its owner can read, and is on the disk before this returns: a key that a
    /// crash could lose would repeat nothing.
    ///
    /// # Errors
    /// [`RepeatKeyError`].
    pub fn load_or_create(path: &Path) -> Result<Self, RepeatKeyError> {
        match Self::load(path) {
            Err(RepeatKeyError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        match create(path) {
            // Another process has just made it.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Self::load(path),
            Err(source) => Err(RepeatKeyError::Write { path: path.to_owned(), source }),
            Ok(key) => Ok(key),
        }
    }

    fn load(path: &Path) -> Result<Self, RepeatKeyError> {
        let failed = |source| RepeatKeyError::Read { path: path.to_owned(), source };
        let mut text = Zeroizing::new(Vec::with_capacity(MAXIMUM_FILE_BYTES as usize));
        File::open(path).map_err(failed)?.take(MAXIMUM_FILE_BYTES).read_to_end(&mut text).map_err(failed)?;
        let mut key = Self::new([0; REPEAT_KEY_BYTES]);
        hex::decode_to_slice(text.trim_ascii(), &mut key.0[..])
            .map_err(|_| RepeatKeyError::Content { path: path.to_owned() })?;
        Ok(key)
    }

    /// Id and seeds of the request of `caller` with these values, row by row.
    pub(crate) fn derive(
        &self,
        caller: &Identity,
        task: &Task,
        rows: u32,
        values: &[i64],
    ) -> RepeatableRequest {
        let mut hasher = Sha256::new();
        for value in values {
            hasher.update(value.to_le_bytes());
        }
        let uri = caller.uri();
        let mut information = Zeroizing::new(LABEL.to_vec());
        for text in [&uri, &task.name] {
            information.extend_from_slice(&(text.len() as u64).to_le_bytes());
            information.extend_from_slice(text.as_bytes());
        }
        information.extend_from_slice(&task.epoch.to_le_bytes());
        information.extend_from_slice(&task.policy_digest);
        information.extend_from_slice(&rows.to_le_bytes());
        information.extend_from_slice(&hasher.finalize());

        let mut output = Zeroizing::new([0; REQUEST_ID_BYTES + 2 * SEED_BYTES]);
        Hkdf::<Sha256>::new(None, &self.0[..])
            .expand(&information, &mut output[..])
            .expect("80 bytes are far below the limit of HKDF, 255 times 32");
        let mut request = RepeatableRequest {
            request_id: [0; REQUEST_ID_BYTES],
            seeds: Zeroizing::new([[0; SEED_BYTES]; 2]),
        };
        let (id, seeds) = output.split_at(REQUEST_ID_BYTES);
        request.request_id.copy_from_slice(id);
        for (seed, bytes) in request.seeds.iter_mut().zip(seeds.chunks_exact(SEED_BYTES)) {
            seed.copy_from_slice(bytes);
        }
        request
    }
}

/// Writes a new key. The file appears with all of its content or not at all.
fn create(path: &Path) -> io::Result<RepeatKey> {
    let mut key = RepeatKey::new([0; REPEAT_KEY_BYTES]);
    SysRng.try_fill_bytes(&mut key.0[..]).map_err(io::Error::other)?;
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let text = Zeroizing::new(hex::encode(&key.0[..]) + "\n");
    // Readable by its owner only, as all files of this crate are.
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist_noclobber(path).map_err(|error| error.error)?;
    // The name is on the disk only when the folder is.
    if cfg!(unix) {
        fs::File::open(folder)?.sync_all()?;
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use concilium_rpc::identity::Role;

    use super::*;
    use crate::task::tests::task;

    fn alice() -> Identity {
        Identity::new(Role::Client, "alice").unwrap()
    }

    /// The values that `docs/protocols.md` shows, computed with Python's `hmac` and `hashlib`.
    #[test]
    fn the_derivation_is_the_documented_one() {
        let key = RepeatKey::new(std::array::from_fn(|index| index as u8));
        let request = key.derive(&alice(), &task(), 1, &[0, 4096, -1, 2048]);
        let found = [&request.request_id[..], &request.seeds[0], &request.seeds[1]].map(hex::encode);
        let documentation =
            fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/protocols.md"))
                .unwrap();
        for (value, expected) in found.iter().zip([
            "c5956fdeb93f5232194b1ab0579114bb",
            "ea925c9e63890abf5b498ffea6b9b5832dca8432a709fd927c177ba2eae943b9",
            "eadddf36ccf790eadab11ba6d020e87f9359b337956e509dcf73cd7ba8e6f335",
        ]) {
            assert_eq!(value, expected);
            assert!(documentation.contains(value), "docs/protocols.md does not show {value}");
        }
    }

    #[test]
    fn whatever_differs_changes_id_and_seeds() {
        let key = RepeatKey::new([7; REPEAT_KEY_BYTES]);
        let task = task();
        let numbers = vec![1, 2, 3, 4, 5, 6, 7, 8];
        let mut changed = numbers.clone();
        changed[7] = -8;
        let mut swapped = numbers.clone();
        swapped.swap(0, 1);
        let bob = Identity::new(Role::Client, "bob").unwrap();
        let requests = [
            key.derive(&alice(), &task, 2, &numbers),
            key.derive(&alice(), &task, 1, &numbers),
            key.derive(&alice(), &task, 2, &changed),
            key.derive(&alice(), &task, 2, &swapped),
            key.derive(&bob, &task, 2, &numbers),
            key.derive(&alice(), &Task { name: "digit".into(), ..task.clone() }, 2, &numbers),
            key.derive(&alice(), &Task { epoch: task.epoch + 1, ..task.clone() }, 2, &numbers),
            key.derive(&alice(), &Task { policy_digest: [9; 32], ..task.clone() }, 2, &numbers),
            RepeatKey::new([8; REPEAT_KEY_BYTES]).derive(&alice(), &task, 2, &numbers),
        ];
        let count = requests.len();
        let ids: BTreeSet<_> = requests.iter().map(|request| request.request_id).collect();
        let seeds: BTreeSet<_> = requests.iter().flat_map(|request| *request.seeds).collect();
        assert_eq!((ids.len(), seeds.len()), (count, 2 * count));
        let again = key.derive(&alice(), &task, 2, &numbers);
        assert_eq!((again.request_id, *again.seeds), (requests[0].request_id, *requests[0].seeds));
    }

    #[test]
    fn a_key_is_made_once_and_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("repeat.key");
        let made = RepeatKey::load_or_create(&path).unwrap();
        let read = RepeatKey::load_or_create(&path).unwrap();
        assert_eq!(made.0, read.0);
        assert_ne!(*made.0, [0; REPEAT_KEY_BYTES]);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.trim(), hex::encode(*made.0));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        let other = RepeatKey::load_or_create(&folder.path().join("other.key")).unwrap();
        assert_ne!(made.0, other.0);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "no temporary file is left");
    }

    #[test]
    fn what_is_no_key_is_refused_without_being_repeated() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("repeat.key");
        let digits = "ab".repeat(REPEAT_KEY_BYTES);
        for wrong in
            ["", "secret", &digits[1..], &format!("{digits}00"), &digits.replace('a', "x"), &"0".repeat(4096)]
        {
            fs::write(&path, wrong).unwrap();
            let error = RepeatKey::load_or_create(&path).err().unwrap();
            assert!(matches!(error, RepeatKeyError::Content { .. }), "{error}");
            assert_eq!(error.class(), FailureClass::Input);
            assert!(!error.to_string().contains("secret"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), wrong, "a file is never overwritten");
        }
        let error = RepeatKey::load_or_create(&folder.path().join("missing/repeat.key")).err().unwrap();
        assert!(matches!(error, RepeatKeyError::Write { .. }), "{error}");
        let error = RepeatKey::load_or_create(folder.path()).err().unwrap();
        assert!(matches!(error, RepeatKeyError::Read { .. }), "{error}");
    }
}
