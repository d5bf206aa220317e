//! The file of a snapshot: a sequence of sealed records. It does not know what they mean.
//!
//! ```text
//! PATH         magic, random id of the file, and for each record: its length (4 bytes), and the sealed record
//! PATH.key     the secret. It is made if it does not exist
//! PATH.owner   the id of the process that writes the snapshot: the one that was started last
//! PATH.new     a file that is being written. It replaces PATH when it is complete
//! ```
//!
//! The context of a record has the id of the file and the record's number. So records cannot be left out, exchanged, or
//! taken from another file, except at the end. All functions block.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::OFlag;
use nix::unistd::geteuid;

use crate::random::Random;
use crate::seal::{self, Sealer, Unreadable};

const MAGIC: &[u8] = b"workspace-gateway snapshot 1\n";
const ID_LEN: usize = 16;
/// Only the owner may read the files.
const PERMISSIONS: u32 = 0o600;
/// A longer secret file is no secret file.
const MAX_SECRET: u64 = 4096;

/// The files of a snapshot, as this process sees them.
pub struct SnapshotFile {
    path: PathBuf,
    /// What this process has written to `PATH.owner`.
    owner: String,
    random: Random,
}

impl SnapshotFile {
    /// # Errors
    /// If the path cannot be that of a file, or the system has no randomness.
    pub fn new(path: &Path, random: Random) -> io::Result<Self> {
        if path.is_dir() || path.file_name().is_none() {
            return Err(io::Error::other(format!("{:?}: expected the path of a file", path.display())));
        }
        let owner = blake3::Hash::from_bytes(random.key("snapshot owner")?).to_hex().to_string();
        Ok(Self { path: path.to_owned(), owner, random })
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(suffix);
        path.into()
    }

    /// The secret beside the snapshot. If there is none, a new one is made.
    ///
    /// # Errors
    /// If it can neither be read nor made.
    pub(crate) fn secret(&self) -> io::Result<Vec<u8>> {
        let path = self.beside(".key");
        let with_path = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        match read_secret(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            read => return read.map_err(with_path),
        }
        // The file appears with its whole content. If another process is faster, its secret counts.
        let new = self.beside(&format!(".key.{}", self.owner.get(..8).unwrap_or_default()));
        let secret = self.random.key("snapshot secret")?;
        let written = new_file(&new).and_then(|mut file| file.write_all(&secret).and_then(|()| file.sync_all()));
        let linked = written.and_then(|()| match fs::hard_link(&new, &path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            linked => linked,
        });
        let _ = fs::remove_file(&new);
        linked.and_then(|()| read_secret(&path)).map_err(with_path)
    }

    /// Checks that the snapshot can be removed: a file in its folder can be made and removed.
    ///
    /// # Errors
    /// If the file system refuses it.
    pub(crate) fn check_removal(&self) -> io::Result<()> {
        let probe = self.beside(".probe");
        let tried = options().create(true).truncate(true).open(&probe).and_then(|_| fs::remove_file(&probe));
        tried.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", probe.display())))
    }

    /// Makes this process the one that writes the snapshot. An earlier one, which may still finish its requests, does not
    /// write it any more.
    ///
    /// # Errors
    /// If the file system refuses it.
    pub(crate) fn claim(&self) -> io::Result<()> {
        let mut file = options().create(true).truncate(true).open(self.beside(".owner"))?;
        file.write_all(self.owner.as_bytes())
    }

    /// Whether this process may write the snapshot.
    fn is_own(&self) -> io::Result<bool> {
        let mut owner = Vec::new();
        let file = options().read(true).write(false).open(self.beside(".owner"));
        match file.and_then(|file| file.take(MAX_SECRET).read_to_end(&mut owner)) {
            Ok(_) => Ok(owner == self.owner.as_bytes()),
            Err(error) if error.kind() == ErrorKind::NotFound => self.claim().map(|()| true),
            Err(error) => Err(error),
        }
    }

    /// Removes the snapshot, whoever has written it.
    ///
    /// # Errors
    /// If the file system refuses it.
    pub(crate) fn remove(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Ok(()) => self.sync_folder(),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn sync_folder(&self) -> io::Result<()> {
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()
    }

    /// Begins a new snapshot. `None` if another process owns it.
    ///
    /// # Errors
    /// If the file system refuses it.
    pub fn write<'s>(&'s self, sealer: &'s Sealer) -> io::Result<Option<SnapshotWriter<'s>>> {
        if !self.is_own()? {
            return Ok(None);
        }
        let path = self.beside(".new");
        let mut id = [0; ID_LEN];
        id.copy_from_slice(&self.random.key("snapshot id")?[..ID_LEN]);
        let file = new_file(&path)?;
        let mut writer = SnapshotWriter { to: self, path, file: BufWriter::new(file), sealer, id, number: 0 };
        writer.file.write_all(MAGIC)?;
        writer.file.write_all(&id)?;
        Ok(Some(writer))
    }

    /// Opens the snapshot. `None` if there is none. Records that are larger than `max_record` bytes cannot be read.
    ///
    /// # Errors
    /// If the file cannot be read, or is no snapshot.
    pub fn read(&self, sealer: &Arc<Sealer>, max_record: usize) -> io::Result<Option<SnapshotReader>> {
        let sealer = Arc::clone(sealer);
        let file = match options().read(true).write(false).open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let size = file.metadata()?.len();
        let mut file = BufReader::new(file);
        let (mut magic, mut id) = ([0; MAGIC.len()], [0; ID_LEN]);
        let head = file.read_exact(&mut magic).and_then(|()| file.read_exact(&mut id));
        match head {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                return Err(io::Error::new(ErrorKind::InvalidData, "the file is too short for a snapshot"));
            }
            head => head?,
        }
        if magic != MAGIC {
            return Err(io::Error::new(ErrorKind::InvalidData, "the file is not a snapshot of this version"));
        }
        let left = size.saturating_sub((MAGIC.len() + ID_LEN) as u64);
        Ok(Some(SnapshotReader { file: Some(file), left, sealer, id, number: 0, max_record }))
    }
}

/// For files that only the owner may read. Symbolic links are not followed, and nothing waits for the other end of a pipe:
/// somebody else could have made them.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(PERMISSIONS).custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits());
    options
}

/// A new file in place of what is there.
fn new_file(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    options().create_new(true).open(path)
}

/// Reads a secret that nobody else can know.
fn read_secret(path: &Path) -> io::Result<Vec<u8>> {
    let file = options().read(true).write(false).open(path)?;
    let metadata = file.metadata()?;
    if metadata.uid() != geteuid().as_raw() || metadata.mode() & 0o077 != 0 {
        return Err(io::Error::other("must belong to the user of the gateway, and only that user may read it"));
    }
    let mut secret = Vec::new();
    file.take(MAX_SECRET).read_to_end(&mut secret)?;
    match secret.len() {
        0..seal::MIN_SECRET => Err(io::Error::other(format!("has less than {} bytes: remove it", seal::MIN_SECRET))),
        _ => Ok(secret),
    }
}

fn context(id: &[u8; ID_LEN], number: u64) -> Vec<u8> {
    [&b"snapshot"[..], id, &number.to_le_bytes()].concat()
}

/// A snapshot that is being written. If it is dropped, nothing has changed.
pub struct SnapshotWriter<'s> {
    to: &'s SnapshotFile,
    path: PathBuf,
    file: BufWriter<File>,
    sealer: &'s Sealer,
    id: [u8; ID_LEN],
    number: u64,
}

impl SnapshotWriter<'_> {
    /// Adds a record.
    ///
    /// # Errors
    /// If the file system refuses it.
    pub fn add(&mut self, record: &[u8]) -> io::Result<()> {
        let sealed = self.sealer.seal(&context(&self.id, self.number), record);
        let too_large = || io::Error::other("a record is too large");
        let sealed = sealed.ok_or_else(too_large)?;
        self.number += 1;
        let length = u32::try_from(sealed.len()).map_err(|_| too_large())?;
        self.file.write_all(&length.to_le_bytes())?;
        self.file.write_all(&sealed)
    }

    /// Replaces the snapshot by this one, if `is_valid` before and after. Returns whether it did.
    ///
    /// # Errors
    /// If the file system refuses it.
    pub fn finish(mut self, is_valid: impl Fn() -> bool) -> io::Result<bool> {
        self.file.flush()?;
        self.file.get_ref().sync_all()?;
        if !is_valid() || !self.to.is_own()? || !self.is_in_place() {
            return Ok(false);
        }
        fs::rename(&self.path, &self.to.path)?;
        if !is_valid() {
            self.to.remove()?;
            return Ok(false);
        }
        self.to.sync_folder()?;
        Ok(true)
    }
}

impl SnapshotWriter<'_> {
    /// Whether the path still leads to this file. Another process may have begun one.
    fn is_in_place(&self) -> bool {
        let own = self.file.get_ref().metadata().map(|own| (own.dev(), own.ino()));
        let there = fs::symlink_metadata(&self.path).map(|there| (there.dev(), there.ino()));
        matches!((own, there), (Ok(own), Ok(there)) if own == there)
    }
}

impl Drop for SnapshotWriter<'_> {
    fn drop(&mut self) {
        // What remains after an error is replaced by the next writer.
        if self.is_in_place() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The records of a snapshot, in order. It ends with the first one that cannot be read.
pub struct SnapshotReader {
    /// `None` after the end.
    file: Option<BufReader<File>>,
    /// The rest of the file, in bytes.
    left: u64,
    sealer: Arc<Sealer>,
    id: [u8; ID_LEN],
    number: u64,
    max_record: usize,
}

impl Iterator for SnapshotReader {
    type Item = Result<Vec<u8>, Unreadable>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut file = self.file.take().filter(|_| self.left > 0)?;
        let read = self.read(&mut file);
        // Nothing after a record that cannot be read can be trusted to be in its place.
        self.file = read.is_ok().then_some(file);
        Some(read)
    }
}

impl SnapshotReader {
    /// The next records, until they have at least this size together. The last one may be larger. `None` after the end.
    pub(crate) fn next_batch(&mut self, bytes: usize) -> Option<Vec<Result<Vec<u8>, Unreadable>>> {
        let mut left = bytes;
        let size = |record: &Result<Vec<u8>, Unreadable>| record.as_ref().map_or(0, Vec::len);
        let batch = std::iter::from_fn(|| {
            let record = (left > 0).then(|| self.next()).flatten()?;
            left = left.saturating_sub(size(&record));
            Some(record)
        });
        let batch: Vec<_> = batch.collect();
        (!batch.is_empty()).then_some(batch)
    }

    fn read(&mut self, file: &mut BufReader<File>) -> Result<Vec<u8>, Unreadable> {
        let mut length = [0; 4];
        file.read_exact(&mut length).map_err(|_| Unreadable::Damaged)?;
        let length = u32::from_le_bytes(length);
        self.left = self.left.checked_sub(u64::from(length) + 4).ok_or(Unreadable::Damaged)?;
        let size = usize::try_from(length).map_err(|_| Unreadable::TooLarge)?;
        // Nobody has authenticated the length yet, so the record cannot be skipped.
        if size > self.max_record.saturating_add(seal::OVERHEAD) {
            return Err(Unreadable::TooLarge);
        }
        let mut sealed = vec![0; size];
        file.read_exact(&mut sealed).map_err(|_| Unreadable::Damaged)?;
        let record = self.sealer.open(&context(&self.id, self.number), &mut sealed)?.to_vec();
        self.number += 1;
        Ok(record)
    }
}

#[cfg(test)]
mod tests;
