//! Writes the file of `init`. A file that exists stays as it is until the new one is complete, where the file
//! system allows that.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::ErrorKind::{CrossesDevices, PermissionDenied, ResourceBusy};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown};
use std::path::Path;

/// Until the new file has the permissions of the old one, only its owner may read it.
const PERMISSIONS: u32 = 0o600;

/// Writes a new file, or replaces one. The new one has the owner, group and permissions of the old one: the service may
/// run as another user than the one who calls `init`. A symbolic link still leads to it.
///
/// # Errors
/// `AlreadyExists` if the file exists and must not be replaced. Else what the file system says.
pub(super) fn write(file: &Path, text: &str, replace: bool) -> io::Result<()> {
    let in_place = || {
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).create_new(!replace).truncate(replace);
        options.open(file)?.write_all(text.as_bytes())
    };
    match fs::metadata(file) {
        Ok(old) if replace && old.is_file() => match replace_file(&fs::canonicalize(file)?, &old, text) {
            // A file that is a mount point cannot be replaced, and the user may write the file but not its folder.
            Err(error) if matches!(error.kind(), ResourceBusy | CrossesDevices | PermissionDenied) => in_place(),
            replaced => replaced,
        },
        // A device has no content to lose.
        _ => in_place(),
    }
}

fn replace_file(file: &Path, old: &Metadata, text: &str) -> io::Result<()> {
    let mut new = file.as_os_str().to_owned();
    new.push(format!(".new-{}", std::process::id()));
    let opened = OpenOptions::new().write(true).create_new(true).mode(PERMISSIONS).open(&new)?;
    let replaced = complete(opened, old, text).and_then(|()| fs::rename(&new, file));
    if replaced.is_err() {
        let _ = fs::remove_file(&new);
    }
    replaced
}

fn complete(mut new: File, old: &Metadata, text: &str) -> io::Result<()> {
    new.write_all(text.as_bytes())?;
    let own = new.metadata()?;
    if (own.uid(), own.gid()) != (old.uid(), old.gid()) {
        fchown(&new, Some(old.uid()), Some(old.gid()))?;
    }
    new.set_permissions(old.permissions())?;
    new.sync_all()
}
