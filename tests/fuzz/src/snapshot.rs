//! The file of a snapshot. The first byte of an input chooses: the rest is the file, or edits of a valid file.

#![no_main]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, LazyLock};
use std::{env, process};

use libfuzzer_sys::fuzz_target;
use workspace_gateway::testing::random::Random;
use workspace_gateway::testing::seal::{OVERHEAD, Sealer};
use workspace_gateway::testing::snapshot::SnapshotFile;
use workspace_gateway_fuzz::{edit, record_reader, within_memory};

const FILE: u8 = 0;
const EDITED: u8 = 1;

/// The largest record that may be read, in bytes.
const MAX_RECORD: usize = 4096;
/// A sealed record, its content, what is authenticated with it, and the buffer of the file.
const MEMORY: usize = 2 * (MAX_RECORD + OVERHEAD) + 16 * 1024;

struct Snapshot {
    file: SnapshotFile,
    /// The contents of the file.
    bytes: File,
    sealer: Arc<Sealer>,
    records: Vec<Vec<u8>>,
    valid: Vec<u8>,
}

static SNAPSHOT: LazyLock<Snapshot> = LazyLock::new(|| {
    let folder = env::temp_dir().join(format!("workspace-gateway-fuzz-{}", process::id()));
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join("snapshot");
    let file = SnapshotFile::new(&path, Random::System).unwrap();
    let sealer = Arc::new(Sealer::new(&[1; 32], &[], &Random::System).unwrap());
    let records = record_reader().snapshot_records().unwrap();
    let mut writer = file.write(&sealer).unwrap().unwrap();
    records.iter().for_each(|record| writer.add(record).unwrap());
    assert!(writer.finish(|| true).unwrap());
    let valid = fs::read(&path).unwrap();
    let bytes = File::options().write(true).open(&path).unwrap();
    let snapshot = Snapshot { file, bytes, sealer, records, valid };
    assert_eq!(snapshot.read(&snapshot.valid), snapshot.records.len());
    snapshot
});

impl Snapshot {
    /// Reads a file. Returns how many records it has: they are the first ones of the valid file, in their order.
    fn read(&self, file: &[u8]) -> usize {
        // Not truncated first: some file systems then write it to the disk when it is closed.
        self.bytes.write_all_at(file, 0).unwrap();
        self.bytes.set_len(file.len() as u64).unwrap();
        within_memory(MEMORY, || {
            let Ok(reader) = self.file.read(&self.sealer, MAX_RECORD) else { return 0 };
            let mut reader = reader.unwrap();
            let mut expected = self.records.iter();
            let mut count = 0;
            loop {
                match reader.next() {
                    Some(Ok(record)) => assert_eq!(Some(&record), expected.next(), "a record in another's place"),
                    Some(Err(_)) => {
                        // No record is read after the first one that cannot be read, and the reader ends.
                        assert!(reader.all(|record| record.is_err()));
                        return count;
                    }
                    None => return count,
                }
                count += 1;
            }
        })
    }
}

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let valid = &SNAPSHOT.valid;
    let seed = |what: u8, rest: &[u8]| [&[what], rest].concat();
    vec![
        ("file-valid", seed(FILE, valid)),
        ("file-without-records", seed(FILE, &valid[..45])),
        // The length of the first record is close to 4 GiB.
        ("file-long-record", seed(FILE, &[&valid[..45], &[255; 4]].concat())),
        ("edited-unchanged", seed(EDITED, &[])),
        ("edited-other-id", seed(EDITED, &[1, 30, 0, 1])),
        ("edited-second-record", seed(EDITED, &[1, 200, 0, 1])),
        ("edited-truncated", seed(EDITED, &[3, 244, 1, 255])),
    ]
}

fuzz_target!(
    init: workspace_gateway_fuzz::write_seeds(seeds),
    |input: &[u8]| {
        let Some((what, rest)) = input.split_first() else { return };
        let snapshot = &*SNAPSHOT;
        if what % 2 == FILE {
            snapshot.read(rest);
        } else {
            let mut file = snapshot.valid.clone();
            edit(&mut file, rest);
            snapshot.read(&file);
        }
    }
);
