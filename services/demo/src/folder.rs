//! The folder that a demonstration works in: temporary, or kept for the user.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::error::DemoError;

/// A folder that is removed when it is dropped, unless the user wants to keep it.
pub enum Folder {
    /// Removed at the end.
    Temporary(TempDir),
    /// Left to the user.
    Kept(PathBuf),
}

impl Folder {
    /// Makes a temporary folder, or takes one that is absent or empty.
    ///
    /// # Errors
    /// [`DemoError::Folder`] or [`DemoError::FolderInUse`].
    pub fn new(keep: Option<&Path>) -> Result<Self, DemoError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| DemoError::Folder { path, source }
        };
        let Some(path) = keep else {
            let folder = tempfile::Builder::new().prefix("concilium-demo-").tempdir();
            return folder.map(Folder::Temporary).map_err(failed(&std::env::temp_dir()));
        };
        fs::create_dir_all(path).map_err(failed(path))?;
        if fs::read_dir(path).map_err(failed(path))?.next().is_some() {
            return Err(DemoError::FolderInUse { path: path.to_owned() });
        }
        // Servers get paths from here and may have another working directory.
        path.canonicalize().map(Folder::Kept).map_err(failed(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        match self {
            Folder::Temporary(folder) => folder.path(),
            Folder::Kept(path) => path,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_folders_end_and_kept_ones_stay() {
        let temporary = Folder::new(None).unwrap();
        let path = temporary.path().to_owned();
        assert!(path.is_dir());
        drop(temporary);
        assert!(!path.exists());

        let base = tempfile::tempdir().unwrap();
        let wanted = base.path().join("a/b");
        let kept = Folder::new(Some(&wanted)).unwrap();
        assert!(kept.path().is_absolute());
        fs::write(kept.path().join("file"), "text").unwrap();
        drop(kept);
        let refused = Folder::new(Some(&wanted)).err().unwrap();
        assert!(matches!(refused, DemoError::FolderInUse { .. }), "{refused}");
        assert!(Folder::new(Some(&wanted.join("file"))).is_err());
    }
}
