//! A catalogue that changes at random times, and what upstream would answer at any moment.

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// Which lists a change affects.
#[derive(Clone, Copy, PartialEq)]
pub enum Change {
    /// All.
    Whole,
    /// Each list with this probability.
    Some(f64),
    /// Each list changes on its own.
    Alone,
}

impl Change {
    pub fn name(self) -> &'static str {
        match self {
            Self::Whole => "whole catalogue",
            Self::Some(_) => "two in five lists",
            Self::Alone => "lists alone",
        }
    }

    /// How often a list changes, if there is a change each `period`.
    pub fn rate(self, period: f64) -> f64 {
        match self {
            Self::Whole | Self::Alone => 1.0 / period,
            Self::Some(probability) => probability / period,
        }
    }
}

/// When each list changes, in seconds.
pub struct World {
    changes: Vec<Vec<f64>>,
}

impl World {
    /// A catalogue that changes each `period` on average, up to `end`. Both in seconds.
    pub fn new(change: Change, period: f64, lists: usize, end: f64, seed: u64) -> Self {
        let mut dice = SmallRng::seed_from_u64(seed);
        let mut changes = vec![Vec::new(); lists];
        if change == Change::Alone {
            for list in &mut changes {
                list.extend(times(&mut dice, 1.0 / period, end));
            }
        } else {
            for time in times(&mut dice, 1.0 / period, end) {
                for list in &mut changes {
                    if !matches!(change, Change::Some(probability) if dice.random::<f64>() >= probability) {
                        list.push(time);
                    }
                }
            }
        }
        Self { changes }
    }

    /// A catalogue that does not change.
    pub fn constant(lists: usize) -> Self {
        Self { changes: vec![Vec::new(); lists] }
    }

    pub fn version(&self, list: usize, time: f64) -> usize {
        self.changes[list].partition_point(|change| *change <= time)
    }
}

fn times(dice: &mut SmallRng, rate: f64, end: f64) -> Vec<f64> {
    let mut times = Vec::new();
    let mut time = wait(dice, rate);
    while time < end {
        times.push(time);
        time += wait(dice, rate);
    }
    times
}

/// A random time until the next event of a Poisson process.
pub fn wait(dice: &mut SmallRng, rate: f64) -> f64 {
    -(1.0 - dice.random::<f64>()).ln() / rate
}
