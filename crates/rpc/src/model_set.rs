//! Which versions of which models answered, as one digest: what a receipt names.

use sha2::{Digest, Sha256};

use crate::v1::ModelVersion;

/// In front of everything that is hashed.
const PURPOSE: &[u8] = b"concilium v2 model set";

/// The digest of the models that answer a batch of `task`, in the order of evaluation.
///
/// SHA-256 of `concilium v2 model set`, of the task, and then of every model's owner, name, version and
/// content digest, each of these with its length in front; lengths and versions are 8 bytes, little-endian.
pub fn model_set_digest<'a>(task: &str, models: impl IntoIterator<Item = &'a ModelVersion>) -> [u8; 32] {
    let mut hasher = Sha256::new_with_prefix(PURPOSE);
    let mut add = |part: &[u8]| {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    };
    add(task.as_bytes());
    for ModelVersion { owner, model, version, content_digest } in models {
        add(owner.as_bytes());
        add(model.as_bytes());
        add(&version.to_le_bytes());
        add(content_digest);
    }
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_tells_two_sets_apart_is_in_the_digest() {
        let version = |owner: &str, model: &str, version, content: u8| ModelVersion {
            owner: owner.to_owned(),
            model: model.to_owned(),
            version,
            content_digest: vec![content; 32].into(),
        };
        let sets = [
            ("digits", vec![version("ward", "m", 1, 7), version("ward", "n", 1, 8)]),
            ("digit", vec![version("sward", "m", 1, 7), version("ward", "n", 1, 8)]),
            ("digits", vec![version("ward", "n", 1, 8), version("ward", "m", 1, 7)]),
            ("digits", vec![version("ward", "m", 2, 7), version("ward", "n", 1, 8)]),
            ("digits", vec![version("ward", "m", 1, 8), version("ward", "n", 1, 8)]),
            ("digits", vec![version("war", "dm", 1, 7), version("ward", "n", 1, 8)]),
            ("digits", vec![version("ward", "m", 1, 7)]),
            ("digits", vec![]),
        ];
        let digests: Vec<_> = sets.iter().map(|(task, models)| model_set_digest(task, models)).collect();
        for (place, digest) in digests.iter().enumerate() {
            assert!(!digests[..place].contains(digest), "set {place} is not told apart");
        }
        assert_eq!(digests[0], model_set_digest("digits", &sets[0].1));
    }
}
