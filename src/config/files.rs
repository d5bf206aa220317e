//! The files that a configuration is made of, each read once: what is parsed is what is compared later. What is no
//! regular file, such as a pipe, is read once for all: what it said stays, and nobody looks at it again.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::string::FromUtf8Error;

use super::bounded;

/// What a regular file has in it. Nothing, if it can't be read, or isn't one.
pub(super) type Sight = Option<blake3::Hash>;

/// Files by their paths, as they are at one time.
pub(super) type Sights = BTreeMap<PathBuf, Sight>;

/// Files that are read for a configuration. Shows nobody what is in them.
#[derive(Default)]
pub(super) struct Files {
    /// What has been read or looked at since the beginning, as it was then.
    sights: Sights,
    /// What has been read since, and what can't be read again.
    texts: BTreeMap<PathBuf, String>,
}

impl Files {
    /// From here on, files are as they are now.
    pub(super) fn begin(&mut self) {
        self.sights.clear();
    }

    /// What is in a file.
    pub(super) fn read(&mut self, path: &Path) -> io::Result<String> {
        let is_regular = is_regular(path);
        let is_known = self.sights.contains_key(path) || !is_regular;
        if let Some(text) = self.texts.get(path).filter(|_| is_known) {
            self.sights.entry(path.to_owned()).or_insert(None);
            return Ok(text.clone());
        }
        let bytes = bounded::read(path);
        let sight = bytes.as_ref().ok().filter(|_| is_regular).map(|bytes| blake3::hash(bytes));
        self.sights.insert(path.to_owned(), sight);
        // The error that comes with the bytes would show them.
        let not_text = |error: FromUtf8Error| io::Error::new(io::ErrorKind::InvalidData, error.utf8_error());
        let text = String::from_utf8(bytes?).map_err(not_text)?;
        self.texts.insert(path.to_owned(), text.clone());
        Ok(text)
    }

    /// Notes how a file is that somebody else will read.
    pub(super) fn note(&mut self, path: &Path) {
        self.sights.entry(path.to_owned()).or_insert_with(|| look_at(path));
    }

    /// Forgets what can be read again, for secrets are among it.
    pub(super) fn end(&mut self) {
        self.texts.retain(|path, _| self.sights.get(path).is_none_or(Option::is_none));
    }

    /// How the files were.
    pub(super) fn sights(&self) -> &Sights {
        &self.sights
    }

    /// How the same files are now.
    pub(super) fn look(&self) -> Sights {
        self.sights.keys().map(|path| (path.clone(), look_at(path))).collect()
    }
}

/// To look at a pipe is to take what is in it, or to wait for ever.
fn look_at(path: &Path) -> Sight {
    let bytes = bounded::read_regular(path).ok();
    bytes.map(|bytes| blake3::hash(&bytes))
}

fn is_regular(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file())
}
