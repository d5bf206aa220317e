//! The files of a configuration, with a hash of each, so that changes can be detected. A file must be read only once
//! for a configuration: the text that is parsed is the text that is hashed. Files that are not regular, such as pipes,
//! are read only once in the process's life, and their text is kept.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::string::FromUtf8Error;

use super::read_file;

/// A hash of a file's contents. `None` if the file cannot be read or is not a regular file.
pub(super) type FileDigest = Option<blake3::Hash>;

/// Files by path, at one time.
pub(super) type FileDigests = BTreeMap<PathBuf, FileDigest>;

/// Not `Debug`, because the texts contain secrets.
#[derive(Default)]
pub(super) struct Files {
    /// All files that were read or hashed since `begin`.
    digests: FileDigests,
    /// The texts read since `begin`, and those of files that can't be read again.
    texts: BTreeMap<PathBuf, String>,
}

impl Files {
    /// Starts a new configuration: all regular files are read again.
    pub(super) fn begin(&mut self) {
        self.digests.clear();
    }

    pub(super) fn read(&mut self, path: &Path) -> io::Result<String> {
        let is_regular = is_regular(path);
        let is_known = self.digests.contains_key(path) || !is_regular;
        if let Some(text) = self.texts.get(path).filter(|_| is_known) {
            self.digests.entry(path.to_owned()).or_insert(None);
            return Ok(text.clone());
        }
        let bytes = read_file::read(path);
        let fingerprint = bytes.as_ref().ok().filter(|_| is_regular).map(|bytes| blake3::hash(bytes));
        self.digests.insert(path.to_owned(), fingerprint);
        // The original error contains the bytes, which may be a secret.
        let not_text = |error: FromUtf8Error| io::Error::new(io::ErrorKind::InvalidData, error.utf8_error());
        let text = String::from_utf8(bytes?).map_err(not_text)?;
        self.texts.insert(path.to_owned(), text.clone());
        Ok(text)
    }

    /// Hashes a file that another part of the program will read.
    pub(super) fn note(&mut self, path: &Path) {
        self.digests.entry(path.to_owned()).or_insert_with(|| digest_of(path));
    }

    /// Drops the texts that can be read again, because some are secrets.
    pub(super) fn end(&mut self) {
        self.texts.retain(|path, _| self.digests.get(path).is_none_or(Option::is_none));
    }

    pub(super) fn digests(&self) -> &FileDigests {
        &self.digests
    }

    /// The same files as they are now.
    pub(super) fn current(&self) -> FileDigests {
        self.digests.keys().map(|path| (path.clone(), digest_of(path))).collect()
    }
}

/// Reads only regular files: reading a pipe would consume its text or wait forever.
fn digest_of(path: &Path) -> FileDigest {
    let bytes = read_file::read_regular(path).ok();
    bytes.map(|bytes| blake3::hash(&bytes))
}

fn is_regular(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file())
}
