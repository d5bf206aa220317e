//! Records: what opens them, decodes them and restores them. The first byte of an input chooses one of the five.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use workspace_gateway::testing::gateway::snapshot::RecordReader;
use workspace_gateway::testing::random::Random;
use workspace_gateway::testing::seal::{OVERHEAD, Sealer};
use workspace_gateway_fuzz::{edit, join, record_reader, split, within_memory};

const OPEN: u8 = 0;
const DECODE: u8 = 1;
const RESTORE: u8 = 2;
const DECODE_EDITED: u8 = 3;
const RESTORE_EDITED: u8 = 4;

/// The memory for a record, besides what is in proportion to its size. serde reserves at most 1 MiB for a list, whatever the
/// record says of its length.
const MEMORY: usize = 4 << 20;
/// The same for a whole memory of a gateway.
const GATEWAY_MEMORY: usize = 16 << 20;
/// The memory for each byte of a record: a header field without a name and a value has two bytes in a record and 32 in memory, and
/// a list that grows takes three times as much.
const MEMORY_PER_BYTE: usize = 64;

struct Targets {
    sealer: Sealer,
    reader: RecordReader,
    entry: Vec<u8>,
    snapshot: Vec<u8>,
}

static TARGETS: LazyLock<Targets> = LazyLock::new(|| {
    let reader = record_reader();
    let entry = reader.entry_record().unwrap();
    let snapshot = join(&reader.snapshot_records().unwrap());
    assert!(reader.is_entry(&entry));
    assert_eq!(reader.restore(split(&snapshot)).len(), 4);
    Targets { sealer: Sealer::new(&[1; 32], &[&[2; 32]], &Random::System).unwrap(), reader, entry, snapshot }
});

impl Targets {
    /// Nobody can make a record without the secret.
    fn open(&self, bytes: &[u8]) {
        assert!(self.sealer.open(b"context", &mut bytes.to_vec()).is_err());
    }

    /// What a reader gets of a record that was sealed with the right secret.
    fn sealed_and_opened(&self, content: &[u8]) -> Vec<u8> {
        let mut record = self.sealer.seal(b"context", content).unwrap();
        assert_eq!(record.len(), content.len() + OVERHEAD);
        let opened = self.sealer.open(b"context", &mut record).unwrap();
        assert_eq!(opened, content);
        opened.to_vec()
    }

    fn decode(&self, content: &[u8]) {
        let record = self.sealed_and_opened(content);
        let is_entry = within_memory(MEMORY + MEMORY_PER_BYTE * record.len(), || self.reader.is_entry(&record));
        assert!(!is_entry || contains(&record, &self.reader.key_name()), "an entry of another key");
    }

    fn restore(&self, content: &[u8]) {
        let records: Vec<_> = split(content).into_iter().map(|record| self.sealed_and_opened(record)).collect();
        let records = || records.iter().map(Vec::as_slice);
        let limit = GATEWAY_MEMORY + MEMORY_PER_BYTE * content.len();
        for restored in within_memory(limit, || self.reader.restore(records())) {
            assert!(records().any(|record| contains(record, &restored)), "no record names what was restored");
        }
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

fn edited(valid: &[u8], script: &[u8]) -> Vec<u8> {
    let mut bytes = valid.to_vec();
    edit(&mut bytes, script);
    bytes
}

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let Targets { sealer, entry, snapshot, .. } = &*TARGETS;
    let sealed = sealer.seal(b"another context", entry).unwrap();
    // One byte of the first key name is changed; and the last record is truncated.
    let (other_key, truncated) = ([1, 40, 0, 1], [3, 200, 1, 255]);
    let seed = |what: u8, rest: &[u8]| [&[what], rest].concat();
    vec![
        ("open-other-context", seed(OPEN, &sealed)),
        ("decode-entry", seed(DECODE, entry)),
        ("restore-snapshot", seed(RESTORE, snapshot)),
        ("decode-unchanged", seed(DECODE_EDITED, &[])),
        ("decode-other-key", seed(DECODE_EDITED, &other_key)),
        ("restore-unchanged", seed(RESTORE_EDITED, &[])),
        ("restore-other-key", seed(RESTORE_EDITED, &other_key)),
        ("restore-truncated", seed(RESTORE_EDITED, &truncated)),
    ]
}

fuzz_target!(
    init: workspace_gateway_fuzz::write_seeds(seeds),
    |input: &[u8]| {
        let Some((what, rest)) = input.split_first() else { return };
        let targets = &*TARGETS;
        match what % 5 {
            OPEN => targets.open(rest),
            DECODE => targets.decode(rest),
            RESTORE => targets.restore(rest),
            DECODE_EDITED => targets.decode(&edited(&targets.entry, rest)),
            _ => targets.restore(&edited(&targets.snapshot, rest)),
        }
    }
);
