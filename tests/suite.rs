//! The test suite: one binary, one file per feature, over real sockets on ports the system chooses.
//!
//! Nothing sleeps and nothing is tried again: time is a clock that tests move, and whatever runs at
//! the same time is held and released at the simulator's barrier.

#![allow(unreachable_pub, missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::float_cmp)]

mod support;

mod admin;
mod admin_attacks;
mod admin_status;
mod attacks;
mod bypass;
mod caching;
mod clients;
mod coalescing;
mod commands;
mod dead_hours;
mod docs;
mod egress;
mod errors;
mod fences;
mod flights;
mod freshness;
mod headers;
mod health;
mod http2;
mod isolation;
mod key_abuse;
mod keys;
mod metrics;
mod model;
mod node_sdk;
mod operations;
mod outages;
mod page;
mod pass_through;
mod probation;
mod python_sdk;
mod queueing;
mod reload;
mod reload_process;
mod sdk;
mod serving;
mod shapes;
mod sharing;
mod short_way;
mod short_way_attacks;
mod signatures;
mod supervised;
mod table;
mod telling;
mod terraform;
mod tls;
mod tls_files;
mod tls_listener;
mod tracing;
mod unshareable;
mod upgrade;
mod upstream;
mod views;
mod wishes;
