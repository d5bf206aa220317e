//! The report: the number and latency of responses of each kind, and the wrong responses.

use std::collections::BTreeMap;
use std::time::Duration;

use super::client::{End, Exchange};
use super::judge::Verdict;
use super::world::World;

/// The number of wrong responses that are printed in full.
const MAX_SHOWN: usize = 10;

#[derive(Default)]
pub(crate) struct Report {
    /// The time to the head of the response, for each kind.
    kinds: BTreeMap<String, Vec<Duration>>,
    wrong: Vec<String>,
    pub(crate) wrongs: usize,
}

impl Report {
    pub(crate) fn count(&mut self, exchange: &Exchange, verdict: Verdict, world: &World) {
        let took = exchange.decided.saturating_duration_since(exchange.begun);
        match verdict {
            Ok(kind) => self.kinds.entry(kind).or_default().push(took),
            Err(error) => {
                self.wrongs += 1;
                if self.wrong.len() < MAX_SHOWN {
                    self.wrong.push(describe(&error, exchange, world));
                }
            }
        }
    }

    pub(crate) fn wrong(&mut self, what: String) {
        self.wrongs += 1;
        if self.wrong.len() < MAX_SHOWN {
            self.wrong.push(what);
        }
    }

    /// The number of requests with a response.
    pub(crate) fn responses(&self) -> usize {
        self.kinds.iter().filter(|(kind, _)| !kind.starts_with('(')).map(|(_, took)| took.len()).sum::<usize>()
            + self.wrongs
    }

    pub(crate) fn print(&mut self) {
        let mut kinds: Vec<_> = self.kinds.iter_mut().collect();
        kinds.sort_by_key(|(_, took)| std::cmp::Reverse(took.len()));
        println!("{:>9}{:>9}{:>9}{:>9}   status and Cache-Status", "responses", "p50 ms", "p99 ms", "max ms");
        let mut all = Vec::new();
        for (kind, took) in kinds {
            print_line(kind, took);
            all.extend_from_slice(took);
        }
        print_line("all", &mut all);
        for wrong in &self.wrong {
            println!("WRONG: {wrong}");
        }
    }
}

fn print_line(kind: &str, took: &mut [Duration]) {
    took.sort_unstable();
    let [p50, p99, max] = [50, 99, 100].map(|percent| {
        let last = took.len().saturating_sub(1);
        took.get((took.len() * percent / 100).min(last)).map_or(0.0, |took| took.as_secs_f64() * 1e3)
    });
    println!("{:>9}{p50:>9.1}{p99:>9.1}{max:>9.1}   {kind}", took.len());
}

fn describe(error: &str, exchange: &Exchange, world: &World) -> String {
    let Exchange { client, gateway, standing, caller, resource, directives, begun, decided, end } = exchange;
    let took = decided.saturating_duration_since(*begun);
    let target = &world.resources[*resource].targets[0];
    let mut text = format!(
        "{error}\n    client {client}, gateway {gateway} ({standing:?}), caller {caller}, GET {target} (resource {resource}, {directives:?}), after {took:?}:"
    );
    if let End::Answered { status, headers, body } = end {
        let body = body
            .as_ref()
            .map_or_else(Clone::clone, |body| String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned());
        text += &format!("\n    {status} {headers:?}\n    {body}");
    }
    text
}
