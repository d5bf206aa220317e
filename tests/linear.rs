//! The cost of parsing a request's head grows linearly. Each function that reads a part of a head is given its worst
//! input at two sizes. Four times the input must not take more than about four times the allocations, or the
//! instructions.
//!
//! The allocations are counted up to the largest head. They do not show comparisons, which allocate nothing.
//! Instructions do: this program runs itself under valgrind's callgrind, with smaller inputs because valgrind is slow.
//! Without valgrind that test prints that it was skipped; in CI that is a failure. This is a test binary of its own
//! because it has its own allocator.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "linear/cases.rs"]
mod cases;

use std::hint::black_box;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use workspace_gateway::testing::request::validate::{self, Invalid, MAX_FIELDS, MAX_MEMBERS, MAX_PARAMETERS};

use crate::cases::{Case, FEW, SMALL, cases, catalogue, head, list};

/// The most parts of the smaller input where instructions are counted.
const COUNTED: usize = 250;

/// Set for the process that runs under callgrind.
const IS_COUNTED: &str = "WORKSPACE_GATEWAY_TEST_LINEAR_IS_COUNTED";

#[test]
fn four_times_the_input_takes_at_most_five_times_the_allocations() {
    for Case { name, small, prepare, .. } in cases() {
        let cost = |size| {
            let counted = allocation_counter::measure(prepare(size));
            [counted.count_total, counted.bytes_total]
        };
        let (one, four) = (cost(small), cost(4 * small));
        // A buffer that grows by doubling may just have doubled.
        let most = one.map(|cost| 5 * cost + 4_096);
        assert!(four[0] <= most[0] && four[1] <= 2 * most[1], "{name}: {one:?}, and for four times as much {four:?}");
    }
}

/// Reads one input. Callgrind counts from the beginning of this function to its end.
#[inline(never)]
fn callgrind_counts_in_here(read: Box<dyn FnOnce()>) {
    callgrind_dumps_after_this(read);
    black_box(());
}

/// At the end of this function callgrind writes down what it has counted, and counts from zero. It does not notice the
/// end of the function with which it begins to count, so that there are two.
#[inline(never)]
fn callgrind_dumps_after_this(read: Box<dyn FnOnce()>) {
    read();
    black_box(());
}

/// The sizes of the inputs for which instructions are counted. What the first one costs is subtracted from the others.
fn sizes(case: &Case) -> [usize; 3] {
    let small = case.small.min(COUNTED);
    [1, small, 4 * small]
}

/// What callgrind counts for the inputs of all cases, in their order. `None` without valgrind.
fn counts() -> Option<Vec<u64>> {
    let version = Command::new("valgrind").arg("--version").stdout(Stdio::null()).status();
    if !version.is_ok_and(|status| status.success()) {
        return None;
    }
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("callgrind-{}", std::process::id()));
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--combine-dumps=yes"]);
    command.args(["--toggle-collect=*callgrind_counts_in_here*", "--dump-after=*callgrind_dumps_after_this*"]);
    command.arg(format!("--callgrind-out-file={}", file.display()));
    command.arg(std::env::current_exe().unwrap()).args(["--exact", INSTRUCTIONS, "--test-threads=1"]);
    let output = command.env(IS_COUNTED, "1").output().unwrap();
    let report = std::fs::read_to_string(&file).unwrap_or_default();
    let _ = std::fs::remove_file(&file);
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && stdout.contains("1 passed"), "{}\n{stdout}\n{stderr}", output.status);
    Some(report.lines().filter_map(|line| line.strip_prefix("totals: ")).map(|total| total.parse().unwrap()).collect())
}

const INSTRUCTIONS: &str = "four_times_the_input_takes_at_most_five_times_the_instructions";

#[test]
fn four_times_the_input_takes_at_most_five_times_the_instructions() {
    let cases: Vec<_> =
        cases().into_iter().filter(|case| !(cfg!(debug_assertions) && case.removes_repeated_fields)).collect();
    if std::env::var_os(IS_COUNTED).is_some() {
        for case in &cases {
            sizes(case).into_iter().for_each(|size| callgrind_counts_in_here((case.prepare)(size)));
        }
        return;
    }
    let Some(counts) = counts() else {
        assert!(std::env::var_os("CI").is_none(), "valgrind is missing: CI must not skip this test");
        // Not `eprintln!`: its output is shown for failed tests only.
        let _ = writeln!(std::io::stderr(), "SKIPPED: {INSTRUCTIONS} needs valgrind on the PATH.");
        return;
    };
    // The last total is what callgrind counts at the end of the process.
    assert_eq!(counts.len(), 3 * cases.len() + 1);
    let mut grows_faster = Vec::new();
    for (case, counted) in cases.iter().zip(counts.as_chunks::<3>().0) {
        let [one, four] = [1, 2].map(|size| counted[size].saturating_sub(counted[0]));
        // A cost that occurs once, such as another mode of a hash, is not growth.
        if four > 5 * one + 4_096 {
            grows_faster.push(format!("{}: {one}, and for four times as much {four}", case.name));
        }
    }
    assert!(grows_faster.is_empty(), "{grows_faster:#?}");
}

/// The longest accepted lists are so short that even a quadratic algorithm over their members would be cheap.
#[test]
fn accepted_lists_are_short() {
    let catalogue = catalogue();
    for size in [SMALL, 4 * SMALL] {
        for name in ["connection", "via", "cache-control", "pragma", "if-none-match", "authorization"] {
            let mut long = head("/", [(name, list('c', size / 2, ","))]);
            assert!(validate::normalize(&mut long).is_ok());
            let counted = allocation_counter::measure(|| {
                assert_eq!(validate::check(&long, catalogue), Err(Invalid::Members), "{name}");
            });
            assert_eq!(counted.count_total, 0, "{name}: a refusal costs nothing");
        }
    }
    // The number of fields is checked before any field is replaced.
    for name in ["cookie", "content-length", "connection", "x-any"] {
        let mut many = head("/", vec![(name, " a ".to_owned()); FEW]);
        let counted = allocation_counter::measure(|| {
            assert_eq!(validate::normalize(&mut many), Err(Invalid::Fields), "{name}");
        });
        assert_eq!((counted.count_total, many.headers.len()), (0, FEW), "{name}");
    }
    let pairs = MAX_MEMBERS.pow(2);
    assert!(pairs <= 1 << 16 && MAX_FIELDS <= 100 && MAX_PARAMETERS <= 1_000);
}
