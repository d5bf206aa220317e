//! The file of a snapshot: who reads and writes it, and what is refused.

use std::os::unix::fs::PermissionsExt;

use super::*;
use std::sync::Arc;

/// An empty folder that is removed in the end, and a snapshot in it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("workspace-gateway-snapshot-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn path(&self) -> PathBuf {
        self.0.join("snapshot")
    }

    /// As a new process sees it.
    fn process(&self) -> (SnapshotFile, Arc<Sealer>) {
        let file = SnapshotFile::new(&self.path(), Random::System).unwrap();
        let sealer = Arc::new(Sealer::new(&file.secret().unwrap(), &[], &Random::System).unwrap());
        file.claim().unwrap();
        (file, sealer)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn write((file, sealer): &(SnapshotFile, Arc<Sealer>), records: &[&str]) -> bool {
    let Some(mut writer) = file.write(sealer).unwrap() else { return false };
    records.iter().for_each(|record| writer.add(record.as_bytes()).unwrap());
    writer.finish(|| true).unwrap()
}

/// The records, and why the next one cannot be read.
fn read((file, sealer): &(SnapshotFile, Arc<Sealer>)) -> (Vec<String>, Option<Unreadable>) {
    let mut records = Vec::new();
    for record in file.read(sealer, 100).unwrap().into_iter().flatten() {
        match record {
            Ok(record) => records.push(String::from_utf8(record).unwrap()),
            Err(reason) => return (records, Some(reason)),
        }
    }
    (records, None)
}

#[test]
fn the_next_process_reads_what_the_last_one_has_written() {
    let folder = Folder::new("next");
    let first = folder.process();
    assert_eq!(read(&first), (Vec::new(), None));
    assert!(write(&first, &["a", "b"]) && write(&first, &["c", "d"]));
    let second = folder.process();
    assert_eq!(read(&second).0, ["c", "d"]);
    for file in ["snapshot", "snapshot.key"] {
        let mode = fs::metadata(folder.0.join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, PERMISSIONS, "{file}");
    }
    second.0.remove().unwrap();
    second.0.remove().unwrap();
    assert_eq!(read(&second), (Vec::new(), None));
}

#[test]
fn only_the_process_that_was_started_last_writes() {
    let folder = Folder::new("last");
    let first = folder.process();
    let mut begun = first.0.write(&first.1).unwrap().unwrap();
    begun.add(b"old").unwrap();
    let second = folder.process();
    assert!(!begun.finish(|| true).unwrap() && !write(&first, &["old"]));
    assert!(write(&second, &["new"]));
    assert_eq!(read(&second).0, ["new"]);
}

#[test]
fn a_snapshot_that_becomes_invalid_while_it_is_written_replaces_nothing() {
    let folder = Folder::new("invalid");
    let process = folder.process();
    assert!(write(&process, &["old"]));
    let writer = process.0.write(&process.1).unwrap().unwrap();
    assert!(!writer.finish(|| false).unwrap());
    assert_eq!(read(&process).0, ["old"]);
    // Between the check and the renaming: then neither the old nor the new file remains.
    let writer = process.0.write(&process.1).unwrap().unwrap();
    let checks = std::cell::Cell::new(0);
    assert!(!writer.finish(|| checks.replace(checks.get() + 1) == 0).unwrap());
    assert_eq!(read(&process), (Vec::new(), None));
    assert!(!folder.0.join("snapshot.new").exists());
}

#[test]
fn reading_ends_at_the_first_record_that_is_not_in_its_place() {
    let folder = Folder::new("place");
    let process = folder.process();
    assert!(write(&process, &["aaaa", "bbbb", "cccc"]));
    let good = fs::read(folder.path()).unwrap();
    let begin = MAGIC.len() + ID_LEN;
    let size = (good.len() - begin) / 3;
    let record = |index: usize| &good[begin + index * size..begin + (index + 1) * size];
    let swapped = [&good[..begin], record(0), record(2), record(1)].concat();
    let left_out = [&good[..begin], record(0), record(2)].concat();
    let mut changed = good.clone();
    changed[begin + 2 * size - 1] ^= 1;
    let mut large = good.clone();
    large[begin + size..begin + size + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(write(&process, &["dddd", "eeee"]));
    let other = fs::read(folder.path()).unwrap();
    let from_other = [&good[..begin + size], &other[begin + size..]].concat();
    for damaged in [swapped, left_out, changed, large, from_other, good[..begin + 2 * size - 1].to_vec()] {
        fs::write(folder.path(), damaged).unwrap();
        assert_eq!(read(&process), (vec!["aaaa".to_owned()], Some(Unreadable::Damaged)));
    }
    fs::write(folder.path(), &good[..begin + size]).unwrap();
    assert_eq!(read(&process), (vec!["aaaa".to_owned()], None), "the end may be missing");
    fs::write(folder.path(), b"something else, which is long enough for a head").unwrap();
    assert!(process.0.read(&process.1, 100).is_err());
    fs::remove_file(folder.0.join("snapshot.key")).unwrap();
    fs::write(folder.path(), &good).unwrap();
    assert_eq!(read(&folder.process()), (Vec::new(), Some(Unreadable::Secret)));
}

#[test]
fn reading_ends_at_a_record_that_is_too_large() {
    let folder = Folder::new("large");
    let process = folder.process();
    let large = "x".repeat(101);
    assert!(write(&process, &["a", &large, "b"]));
    assert_eq!(read(&process), (vec!["a".to_owned()], Some(Unreadable::TooLarge)));
}

#[test]
fn a_writer_does_not_touch_the_file_of_a_later_process() {
    let folder = Folder::new("two");
    let first = folder.process();
    let mut old = first.0.write(&first.1).unwrap().unwrap();
    old.add(b"old").unwrap();
    let second = folder.process();
    let mut new = second.0.write(&second.1).unwrap().unwrap();
    new.add(b"new").unwrap();
    drop(old);
    assert!(new.finish(|| true).unwrap());
    assert_eq!(read(&second).0, ["new"]);
}

#[test]
fn a_secret_that_others_may_read_is_refused_and_links_are_not_followed() {
    let folder = Folder::new("others");
    let key = folder.0.join("snapshot.key");
    folder.process();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    let file = SnapshotFile::new(&folder.path(), Random::System).unwrap();
    assert!(file.secret().unwrap_err().to_string().contains("only that user may read it"));
    fs::remove_file(&key).unwrap();
    let other = folder.0.join("other");
    fs::write(&other, "kept").unwrap();
    for name in ["snapshot.key", "snapshot.owner", "snapshot.new", "snapshot"] {
        let _ = fs::remove_file(folder.0.join(name));
        std::os::unix::fs::symlink(&other, folder.0.join(name)).unwrap();
    }
    assert!(file.secret().is_err() && file.claim().is_err());
    let sealer = Arc::new(Sealer::new(&[1; 32], &[], &Random::System).unwrap());
    assert!(!matches!(file.write(&sealer), Ok(Some(_))) && file.read(&sealer, 100).is_err());
    fs::remove_file(folder.0.join("snapshot.owner")).unwrap();
    assert!(write(&(file, sealer), &["a"]), "a link in place of a new file is replaced");
    assert_eq!(fs::read_to_string(&other).unwrap(), "kept");
}

#[test]
fn a_folder_is_no_snapshot() {
    let folder = Folder::new("folder");
    for path in [folder.0.as_path(), Path::new(""), Path::new("/")] {
        let error = SnapshotFile::new(path, Random::System).err().unwrap();
        assert!(error.to_string().ends_with("expected the path of a file"), "{error}");
    }
}

#[test]
fn a_secret_that_is_too_short_is_refused_and_named() {
    let folder = Folder::new("secret");
    options().create_new(true).open(folder.0.join("snapshot.key")).unwrap().write_all(b"short").unwrap();
    let error = SnapshotFile::new(&folder.path(), Random::System).unwrap().secret().unwrap_err();
    assert!(error.to_string().contains("snapshot.key: has less than 32 bytes"), "{error}");
}

#[test]
fn the_error_of_a_file_that_is_no_snapshot_says_so() {
    let folder = Folder::new("no-snapshot");
    let (file, sealer) = folder.process();
    let long = vec![b'x'; 1000];
    for (content, expected) in
        [(&b"short"[..], "the file is too short"), (&long, "the file is not a snapshot of this version")]
    {
        fs::write(folder.path(), content).unwrap();
        let error = file.read(&sealer, 100).err().unwrap().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}
