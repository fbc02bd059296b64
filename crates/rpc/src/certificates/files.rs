//! Writing certificates and keys so that no reader sees half a file, and nobody else a key.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use super::AuthorityError;

/// Makes a folder and those above it.
pub(super) fn create_folder(folder: &Path) -> Result<(), AuthorityError> {
    fs::create_dir_all(folder).map_err(|source| AuthorityError::File {
        action: "create",
        path: folder.to_owned(),
        source,
    })
}

/// Replaces `path` in one step.
pub(super) fn write_file(path: &Path, content: &[u8], private: bool) -> Result<(), AuthorityError> {
    Prepared::write(path, content, private)?.put_in_place()
}

/// Replaces a key and its certificate. Both are complete on the disk before the first is replaced, so
/// the time during which they do not fit together is that of two renamings.
pub(super) fn replace_pair(
    (key_path, key): (&Path, &[u8]),
    (certificate_path, certificate): (&Path, &[u8]),
) -> Result<(), AuthorityError> {
    let key = Prepared::write(key_path, key, true)?;
    let certificate = Prepared::write(certificate_path, certificate, false)?;
    key.put_in_place()?;
    certificate.put_in_place()
}

/// A complete file under a name of its own, beside the one that it will replace.
struct Prepared<'a> {
    partial: PathBuf,
    path: &'a Path,
}

impl<'a> Prepared<'a> {
    /// Owner and permissions are those of the file that will be replaced: a server under another user
    /// must still be able to read its key. Without one, a private file is readable by the user alone.
    fn write(path: &'a Path, content: &[u8], private: bool) -> Result<Self, AuthorityError> {
        let failed = |source| AuthorityError::File { action: "write", path: path.to_owned(), source };
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        if let Err(error) = fs::remove_file(&partial)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(failed(error));
        }
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        {
            use std::os::unix::fs::OpenOptionsExt as _;
            // A key is never, not even for a moment, readable by others.
            options.mode(if private { 0o600 } else { 0o644 });
        }
        #[cfg(not(unix))]
        let _ = private;
        let mut file = options.open(&partial).map_err(failed)?;
        let prepared = Self { partial, path };
        prepared.keep_owner().map_err(failed)?;
        file.write_all(content).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        Ok(prepared)
    }

    #[cfg(unix)]
    fn keep_owner(&self) -> io::Result<()> {
        use std::os::unix::fs::{MetadataExt as _, chown};
        let old = match fs::metadata(self.path) {
            Ok(old) => old,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let new = fs::metadata(&self.partial)?;
        if (old.uid(), old.gid()) != (new.uid(), new.gid()) {
            chown(&self.partial, Some(old.uid()), Some(old.gid()))?;
        }
        fs::set_permissions(&self.partial, old.permissions())
    }

    #[cfg(not(unix))]
    fn keep_owner(&self) -> io::Result<()> {
        Ok(())
    }

    fn put_in_place(self) -> Result<(), AuthorityError> {
        fs::rename(&self.partial, self.path).map_err(|source| AuthorityError::File {
            action: "write",
            path: self.path.to_owned(),
            source,
        })
    }
}
