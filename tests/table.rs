//! What a client sees for each behaviour of upstream, in each state of the cache and the caller, with each request
//! directive. Each cell of the table has its own gateway. A cell shows status, body, headers and upstream calls, the
//! response to the next request, and how long a backoff lasts.
//!
//! The expected cells are derived by a model of the rules (`rules.rs`). The most important cells are also written by
//! hand (`written_cells.rs`), so that the model cannot be wrong in the same way as the gateway.

mod behaviours;
mod cell;
mod observed;
mod rules;
mod staged_upstream;
mod states;
mod written_cells;

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::support::HANG;
use behaviours::{Behaviour, Meaning};
use cell::Row;
use rules::{Body, expected};
use staged_upstream::Clients;
use states::{RequestDirectives, STATES, State};

/// How many rows run at the same time, in each of the tests.
const MAX_CONCURRENT_ROWS: usize = 32;

fn name(behaviour: &Behaviour, state: &State, directives: RequestDirectives) -> String {
    format!("{} × {} × {directives}", behaviour.name, state.name)
}

/// Checks the cells of these behaviours. Reports all that differ.
async fn check_cells(behaviours: Vec<Behaviour>) {
    let permits = Arc::new(Semaphore::new(MAX_CONCURRENT_ROWS));
    let (mut clients, mut row_tasks) = (Clients::default(), JoinSet::new());
    for behaviour in behaviours {
        let client = clients.client(&behaviour);
        for state in &STATES {
            let (behaviour, client, permits) = (behaviour.clone(), Arc::clone(&client), Arc::clone(&permits));
            row_tasks.spawn(async move {
                let _permit = permits.acquire_owned().await.unwrap();
                let row = Row::new(&behaviour, state, client).await;
                let mut wrong = Vec::new();
                for directives in RequestDirectives::ALL {
                    wrong.extend(check_cell(&row, &behaviour, state, directives).await);
                }
                wrong
            });
        }
    }
    let mut wrong: Vec<String> = Vec::new();
    while let Some(row) = row_tasks.join_next().await {
        wrong.extend(row.unwrap());
    }
    wrong.sort();
    assert!(wrong.is_empty(), "{} cells are wrong:\n\n{}\n", wrong.len(), wrong.join("\n\n"));
}

async fn check_cell(
    row: &Row<'_>,
    behaviour: &Behaviour,
    state: &State,
    directives: RequestDirectives,
) -> Option<String> {
    let expected = expected(behaviour, state, directives);
    let got = match tokio::time::timeout(HANG, cell::run(row, directives, &expected)).await {
        Ok(Ok(got)) if got == expected => None,
        Ok(Ok(got)) => Some(got.to_string()),
        Ok(Err(wrong)) => Some(format!("    {wrong}")),
        Err(_) => Some("    timeout".to_owned()),
    };
    let name = name(behaviour, state, directives);
    got.map(|got| format!("{name}\n  expected\n{expected}\n  got\n{got}"))
}

#[tokio::test]
async fn success_responses_have_the_expected_effects() {
    check_cells(behaviours::success_responses()).await;
}

#[tokio::test]
async fn refusals_have_the_expected_effects() {
    check_cells(behaviours::refusals()).await;
}

#[tokio::test]
async fn error_responses_have_the_expected_effects() {
    check_cells(behaviours::error_responses()).await;
}

#[tokio::test]
async fn missing_and_cut_responses_have_the_expected_effects() {
    check_cells(behaviours::missing_or_cut_responses()).await;
}

#[tokio::test]
async fn slow_and_large_responses_have_the_expected_effects() {
    check_cells(behaviours::slow_or_large_responses()).await;
}

#[test]
fn the_rules_derive_the_cells_that_are_written_by_hand() {
    let cells = behaviours::all().into_iter().flat_map(|behaviour| {
        let states = STATES.iter().flat_map(|state| RequestDirectives::ALL.map(|directives| (state, directives)));
        states.map(move |(state, directives)| {
            (name(&behaviour, state, directives), expected(&behaviour, state, directives).to_string())
        })
    });
    let cells: std::collections::BTreeMap<_, _> = cells.collect();
    let written_cells: Vec<&str> = written_cells::CELLS.trim().split("\n\n").collect();
    assert!(written_cells.len() >= 60, "{}", written_cells.len());
    for cell in written_cells {
        let (name, written) = cell.split_once('\n').unwrap();
        let expected = cells.get(name).unwrap_or_else(|| panic!("no cell {name}"));
        assert_eq!(written, expected, "{name}");
    }
}

/// The word of the page for the response to a request without directives.
fn page_word(behaviour: &Behaviour, state: &State) -> String {
    let response = expected(behaviour, state, RequestDirectives::None).now;
    match (response.body, behaviour.meaning) {
        (Body::Old, _) => "stored".to_owned(),
        (Body::Own(reason), _) => format!("{} `{reason}`", response.status),
        (_, Meaning::List { .. } | Meaning::Late | Meaning::NoStore) => "new".to_owned(),
        _ => "passed on".to_owned(),
    }
}

#[test]
fn the_page_shows_what_an_application_sees() {
    let page = include_str!("../deploy/behaviour.md");
    let (_, table) = page.split_once("\n| upstream … | ").unwrap();
    let (table, _) = table.split_once("\n\n").unwrap();
    let behaviours = behaviours::all();
    let mut documented = Vec::new();
    for row in table.lines().skip(2) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let names = cells[0].split('`').skip(1).step_by(2);
        for behaviour in names.filter_map(|name| behaviours.iter().find(|behaviour| behaviour.name == name)) {
            documented.push(behaviour.name);
            let columns: [&[&str]; 5] = [
                &["empty", "no grant, empty", "no grant, fresh"],
                &["fresh"],
                &["stale"],
                &["long stale"],
                &["expired"],
            ];
            // The first cell has the names, the last one the notes.
            assert_eq!(cells.len(), columns.len() + 2, "{row}");
            for (cell, names) in cells[1..].iter().zip(columns) {
                for state in STATES.iter().filter(|state| names.contains(&state.name)) {
                    assert_eq!(*cell, page_word(behaviour, state), "{} × {}", behaviour.name, state.name);
                }
            }
        }
    }
    let mut all: Vec<&str> = behaviours.iter().map(|behaviour| behaviour.name).collect();
    documented.sort_unstable();
    all.sort_unstable();
    assert_eq!(documented, all, "each once");
}
