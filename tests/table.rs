//! What comes of it when upstream behaves in a certain way: every behaviour, in every state of what is
//! kept and who asks, with every wish of the client. Each cell has a gateway of its own, and tells
//! status, body, headers and upstream calls; what the next request meets; and how long a pause holds.
//!
//! What is expected is derived by a model of the rules (`rules.rs`), and for the most telling cells
//! written down besides (`told.rs`), so that the model can't be wrong in the same way as the gateway.

mod behaviours;
mod cell;
mod rules;
mod seen;
mod staged;
mod states;
mod told;

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::support::HANG;
use behaviours::{Behaviour, Meaning};
use cell::Place;
use rules::{Body, expected};
use staged::Clients;
use states::{RequestDirectives, STATES, State};

/// How many rows are gone through at the same time, in each of the tests.
const AT_ONCE: usize = 32;

fn name(behaviour: &Behaviour, state: &State, wish: RequestDirectives) -> String {
    format!("{} × {} × {wish}", behaviour.name, state.name)
}

/// Goes through the cells of these behaviours, and says of all that are wrong what they should be.
async fn go_through(behaviours: Vec<Behaviour>) {
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let (mut clients, mut rows) = (Clients::default(), JoinSet::new());
    for behaviour in behaviours {
        let client = clients.client(&behaviour);
        for state in &STATES {
            let (behaviour, client, turns) = (behaviour.clone(), Arc::clone(&client), Arc::clone(&turns));
            rows.spawn(async move {
                let _turn = turns.acquire_owned().await.unwrap();
                let place = Place::of(&behaviour, state, client).await;
                let mut wrong = Vec::new();
                for wish in RequestDirectives::ALL {
                    wrong.extend(what_is_wrong(&place, &behaviour, state, wish).await);
                }
                wrong
            });
        }
    }
    let mut wrong: Vec<String> = Vec::new();
    while let Some(row) = rows.join_next().await {
        wrong.extend(row.unwrap());
    }
    wrong.sort();
    assert!(wrong.is_empty(), "{} cells are wrong:\n\n{}\n", wrong.len(), wrong.join("\n\n"));
}

async fn what_is_wrong(
    place: &Place<'_>,
    behaviour: &Behaviour,
    state: &State,
    wish: RequestDirectives,
) -> Option<String> {
    let expected = expected(behaviour, state, wish);
    let got = match tokio::time::timeout(HANG, cell::run(place, wish, &expected)).await {
        Ok(Ok(got)) if got == expected => None,
        Ok(Ok(got)) => Some(got.to_string()),
        Ok(Err(wrong)) => Some(format!("    {wrong}")),
        Err(_) => Some("    a hang".to_owned()),
    };
    let name = name(behaviour, state, wish);
    got.map(|got| format!("{name}\n  expected\n{expected}\n  got\n{got}"))
}

#[tokio::test]
async fn upstream_answers() {
    go_through(behaviours::answers()).await;
}

#[tokio::test]
async fn upstream_refuses() {
    go_through(behaviours::refusals()).await;
}

#[tokio::test]
async fn upstream_says_that_it_fails() {
    go_through(behaviours::failures()).await;
}

#[tokio::test]
async fn upstream_breaks_off_or_is_not_there() {
    go_through(behaviours::breaks()).await;
}

#[tokio::test]
async fn upstream_is_slow_or_says_too_much() {
    go_through(behaviours::excesses()).await;
}

#[test]
fn the_most_telling_cells_are_as_they_are_told() {
    let cells = behaviours::all().into_iter().flat_map(|behaviour| {
        let states = STATES.iter().flat_map(|state| RequestDirectives::ALL.map(|wish| (state, wish)));
        states.map(move |(state, wish)| (name(&behaviour, state, wish), expected(&behaviour, state, wish).to_string()))
    });
    let cells: std::collections::BTreeMap<_, _> = cells.collect();
    let told: Vec<&str> = told::CELLS.trim().split("\n\n").collect();
    assert!(told.len() >= 60, "{}", told.len());
    for told in told {
        let (name, told) = told.split_once('\n').unwrap();
        let expected = cells.get(name).unwrap_or_else(|| panic!("there is no {name}"));
        assert_eq!(told, expected, "{name}");
    }
}

/// What the README says of a request without wishes.
fn in_the_readme(behaviour: &Behaviour, state: &State) -> String {
    let answer = expected(behaviour, state, RequestDirectives::Nothing).now;
    match (answer.body, behaviour.meaning) {
        (Body::Old, _) => "kept".to_owned(),
        (Body::Own(word), _) => format!("{} `{word}`", answer.status),
        (_, Meaning::List { .. } | Meaning::Late | Meaning::Unkept) => "new".to_owned(),
        _ => "as it is".to_owned(),
    }
}

#[test]
fn the_readme_tells_what_an_application_sees() {
    let readme = include_str!("../README.md");
    let (_, section) = readme.split_once("## What your application sees when upstream …\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let rows = section.lines().filter(|line| line.starts_with('|')).skip(2);
    let behaviours = behaviours::all();
    let mut told = Vec::new();
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let names = cells[0].split('`').skip(1).step_by(2);
        for behaviour in names.filter_map(|name| behaviours.iter().find(|behaviour| behaviour.name == name)) {
            told.push(behaviour.name);
            let columns: [&[&str]; 5] = [
                &["nothing kept", "unproved, nothing kept", "unproved, fresh"],
                &["fresh"],
                &["stale"],
                &["old"],
                &["gone"],
            ];
            assert_eq!(cells.len(), 1 + columns.len(), "{row}");
            for (cell, names) in cells[1..].iter().zip(columns) {
                for state in STATES.iter().filter(|state| names.contains(&state.name)) {
                    let said = cell.split(';').next().unwrap();
                    assert_eq!(said, in_the_readme(behaviour, state), "{} × {}", behaviour.name, state.name);
                }
            }
        }
    }
    let mut all: Vec<&str> = behaviours.iter().map(|behaviour| behaviour.name).collect();
    told.sort_unstable();
    all.sort_unstable();
    assert_eq!(told, all, "each once");
}
